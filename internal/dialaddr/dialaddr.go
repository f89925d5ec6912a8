// Package dialaddr reads the addresses of gRPC servers that people write, and tells
// what no waiting will mend from what it may.
package dialaddr

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"unicode"
)

// DefaultPort is where servers and dispatchers listen for gRPC.
const DefaultPort = "50051"

const want = "want HOST:PORT, for example 127.0.0.1:" + DefaultPort

// resolvers are the names that gRPC resolves by itself.
var resolvers = []string{"dns:", "unix:", "unix-abstract:", "passthrough:", "ipv4:", "ipv6:"}

// Resolved reports whether gRPC reads the address by a resolver of its own, as in
// dns:///host:port or unix:/path.
func Resolved(address string) bool {
	for _, r := range resolvers {
		if strings.HasPrefix(address, r) {
			return true
		}
	}
	return false
}

// Check returns the address with its port, [DefaultPort] where it names none; an error
// says what is wrong with one that can never be right.
func Check(address string) (string, error) {
	scheme, _, isURL := strings.Cut(address, "://")
	switch {
	case isURL && (scheme == "http" || scheme == "https"):
		return "", fmt.Errorf("the address %.200q is a URL, and gRPC takes none: %s; 8000 is the REST port, gRPC is %s", address, want, DefaultPort)
	case isURL, strings.Contains(address, "/"):
		return "", fmt.Errorf("the address %.200q is a URL: %s", address, want)
	case address == "" || strings.ContainsFunc(address, unicode.IsSpace):
		return "", fmt.Errorf("the address %.200q is empty or holds a space: %s", address, want)
	}
	host, port := address, DefaultPort
	switch {
	case strings.HasPrefix(address, "["):
		var rest string
		var ok bool
		if host, rest, ok = strings.Cut(address[1:], "]"); !ok || rest != "" && rest[0] != ':' {
			return "", fmt.Errorf("the address %.200q is malformed: %s", address, want)
		}
		if rest != "" {
			port = rest[1:]
		}
	case strings.Count(address, ":") == 1:
		host, port, _ = strings.Cut(address, ":")
	}
	// What is left with colons is an IPv6 address.
	if strings.Contains(host, ":") && net.ParseIP(strings.SplitN(host, "%", 2)[0]) == nil {
		return "", fmt.Errorf("the address %.200q is malformed: %s", address, want)
	}
	if host == "" {
		return "", fmt.Errorf("the address %.200q names no host: %s", address, want)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("the port %.20q in the address %.200q is no number from 1 to 65535: %s", port, address, want)
	}
	return net.JoinHostPort(host, port), nil
}

// Hopeless reads what the transport says of an attempt to connect and returns, in words,
// why trying again will not help; "" where it may. A host that has no address yet, or
// where nobody listens, may be there in a moment; see [NoHost].
func Hopeless(text string) string {
	switch {
	case strings.Contains(text, "looked like an HTTP/1.1 header"),
		strings.Contains(text, "unexpected HTTP status code received from server: 4") && strings.Contains(text, "application/json"):
		return "an HTTP server answers there, not a gRPC server: 8000 is the REST port; gRPC is " + DefaultPort
	case strings.Contains(text, "speaks plain text and this"):
		return tail(text, "the server speaks", "the dispatcher speaks")
	case strings.Contains(text, "this listener speaks TLS and the client plain text"):
		return tail(text, "this listener speaks TLS")
	case strings.Contains(text, "first record does not look like a TLS handshake"):
		return "it speaks plain text, and TLS was asked for"
	case strings.Contains(text, "x509: "):
		return "its certificate is refused: " + tail(text, "x509: ")[len("x509: "):] + "; check the CA, and the name or address that is dialled"
	case alerted(text):
		return "it refuses this certificate, or wants one (" + tail(text, "remote error: ") + "): give a certificate that its CA signed, and the key"
	case strings.Contains(text, "tls: protocol version not supported"), strings.Contains(text, "tls: no application protocol"),
		strings.Contains(text, "missing selected ALPN property"):
		return "it speaks another kind of TLS, and is no Treadle: " + tail(text, "tls: ", "credentials: ")
	}
	return ""
}

// alerted says that the other side refused what was shown to it.
func alerted(text string) bool {
	for _, alert := range []string{"certificate required", "bad certificate", "unknown certificate authority", "unknown certificate",
		"unsupported certificate", "expired certificate", "revoked certificate"} {
		if strings.Contains(text, "remote error: tls: "+alert) {
			return true
		}
	}
	return false
}

// NoHost reports whether there is no such name: gRPC says of it that it has no addresses.
func NoHost(text string) bool {
	return strings.Contains(text, "no such host") || strings.Contains(text, "produced zero addresses")
}

// tail is the text from the first of the marks that is in it, without what quotes it.
func tail(text string, marks ...string) string {
	for _, m := range marks {
		if i := strings.Index(text, m); i >= 0 {
			return strings.TrimRight(text[i:], `"`)
		}
	}
	return text
}
