package tlsfiles

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Purpose is what a pair of [Make] is for. Its certificate says so as a URI name,
// "treadle:worker" for example.
type Purpose string

// The pairs.
const (
	ForServer Purpose = "server"
	ForWorker Purpose = "worker"
	ForClient Purpose = "client"
)

// Purposes lists all pairs.
func Purposes() []Purpose { return []Purpose{ForServer, ForWorker, ForClient} }

const uriScheme = "treadle"

// PurposeOf returns what a certificate says that it is for; empty when it does not say,
// as those that others made.
func PurposeOf(cert *x509.Certificate) Purpose {
	for _, u := range cert.URIs {
		if u.Scheme == uriScheme {
			return Purpose(u.Opaque)
		}
	}
	return ""
}

const caLife = 10 * 365 * 24 * time.Hour

// Make writes a private CA and one pair for each purpose into dir: ca.pem and
// ca-key.pem, server.pem and server-key.pem, and so on. The server's certificate is made
// out to hosts, names or addresses, and to this machine's loopback. A CA that is there is
// used again; a pair that is there is an error, and nothing is written. made says whether
// the CA is new.
func Make(dir string, hosts []string, life time.Duration, now time.Time) (made bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, fmt.Errorf("make the folder: %w", err)
	}
	for _, p := range Purposes() {
		for _, name := range []string{certName(string(p)), keyName(string(p))} {
			if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
				return false, fmt.Errorf("%s is there already: nothing is overwritten; move it away, or use another folder", filepath.Join(dir, name))
			}
		}
	}
	ca, made, err := authority(dir, now)
	if err != nil {
		return false, err
	}
	for _, p := range Purposes() {
		leaf := &x509.Certificate{
			Subject:     pkix.Name{CommonName: "treadle " + string(p)},
			NotBefore:   now.Add(-time.Hour), // clocks differ
			NotAfter:    now.Add(life),
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			URIs:        []*url.URL{{Scheme: uriScheme, Opaque: string(p)}},
		}
		if leaf.NotAfter.After(ca.Leaf.NotAfter) {
			leaf.NotAfter = ca.Leaf.NotAfter
		}
		if p == ForServer {
			leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			leaf.DNSNames = []string{"localhost"}
			leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
			for _, h := range hosts {
				if ip := net.ParseIP(h); ip == nil {
					if !slices.Contains(leaf.DNSNames, h) {
						leaf.DNSNames = append(leaf.DNSNames, h)
					}
				} else if !slices.ContainsFunc(leaf.IPAddresses, ip.Equal) {
					leaf.IPAddresses = append(leaf.IPAddresses, ip)
				}
			}
		}
		signer, ok := ca.PrivateKey.(crypto.Signer)
		if !ok {
			return made, fmt.Errorf("the key of the CA is a %T that cannot sign", ca.PrivateKey)
		}
		if err := issue(dir, string(p), leaf, ca.Leaf, signer); err != nil {
			return made, err
		}
	}
	return made, nil
}

// authority reads the CA of a folder, or makes one.
func authority(dir string, now time.Time) (ca *tls.Certificate, made bool, err error) {
	const name = "ca"
	certFile, keyFile := filepath.Join(dir, certName(name)), filepath.Join(dir, keyName(name))
	_, certErr := os.Lstat(certFile)
	_, keyErr := os.Lstat(keyFile)
	if errors.Is(certErr, fs.ErrNotExist) != errors.Is(keyErr, fs.ErrNotExist) {
		return nil, false, fmt.Errorf("%s and %s go together, and only one is there: nothing is overwritten; move it away, or bring the other back",
			certFile, keyFile)
	}
	if certErr != nil {
		id := make([]byte, 4)
		_, _ = rand.Read(id) // never fails
		template := &x509.Certificate{
			Subject:   pkix.Name{CommonName: fmt.Sprintf("treadle private CA %x", id)},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(caLife),
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		}
		if err := issue(dir, name, template, template, nil); err != nil {
			return nil, false, err
		}
		made = true
	}
	ca, err = loadPair(certFile, keyFile)
	if err == nil && !ca.Leaf.IsCA {
		err = fmt.Errorf("%s is no certificate authority", certFile)
	}
	return ca, made, err
}

// issue makes a key and a certificate of it and writes both. Without a signer the
// certificate signs itself.
func issue(dir, name string, template, parent *x509.Certificate, signer crypto.Signer) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	if signer == nil {
		signer = key
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return fmt.Errorf("make a serial number: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return fmt.Errorf("sign the certificate of %s: %w", name, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key of %s: %w", name, err)
	}
	if err := writeNew(filepath.Join(dir, keyName(name)), "PRIVATE KEY", keyDER, 0o600); err != nil {
		return err
	}
	return writeNew(filepath.Join(dir, certName(name)), "CERTIFICATE", der, 0o644)
}

// writeNew writes a file that is not there yet.
func writeNew(path, kind string, der []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("nothing is overwritten: %w", err)
	}
	err = errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func certName(of string) string { return of + ".pem" }
func keyName(of string) string  { return of + "-key.pem" }
