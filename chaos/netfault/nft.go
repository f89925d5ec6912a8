package netfault

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
)

// Direction of packets on a link, seen from who dialled.
type Direction int

// Directions.
const (
	Both Direction = iota
	// Up is from who dialled to who listens.
	Up
	// Down is the way back.
	Down
)

// Firewall drops packets. A nil Firewall has the proxies stop instead.
type Firewall struct {
	program string
	mu      sync.Mutex
	// in and out are rules on what arrives and on what is sent: a packet dropped on its
	// way in is lost without a word, and only on its way out is it known whose it is.
	in, out []string
}

// NewFirewall returns a firewall for the network that the process is alone in, or an
// error that says what is missing.
func NewFirewall() (*Firewall, error) {
	program, err := exec.LookPath("nft")
	if err != nil {
		// It is root's, and in a folder that is not on every PATH.
		program, err = exec.LookPath("/usr/sbin/nft")
	}
	if err != nil {
		return nil, fmt.Errorf("nft is not installed (Debian and Ubuntu: apt-get install nftables): %w", err)
	}
	f := &Firewall{program: program}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// load replaces all rules.
func (f *Firewall) load() error {
	text := "table inet chaos\ndelete table inet chaos\ntable inet chaos {\n" +
		"chain in { type filter hook input priority 0; policy accept;\n" + strings.Join(f.in, "\n") + "\n}\n" +
		"chain out { type filter hook output priority 0; policy accept;\n" + strings.Join(f.out, "\n") + "\n}\n}\n"
	cmd := exec.Command(f.program, "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s\n%s", err, out, text)
	}
	return nil
}

func (f *Firewall) add(rules ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.in = append(f.in, rules...)
	return f.load()
}

// Heal lets everything through again.
func (f *Firewall) Heal() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.in, f.out = nil, nil
	return f.load()
}

// CutPairs drops what travels between any address of one side and any of the other.
func (f *Firewall) CutPairs(one, other []string) error {
	a, b := strings.Join(one, ", "), strings.Join(other, ", ")
	return f.add(
		fmt.Sprintf("ip saddr { %s } ip daddr { %s } drop", a, b),
		fmt.Sprintf("ip saddr { %s } ip daddr { %s } drop", b, a))
}

// CutUser drops what the processes of a user send to those addresses.
func (f *Firewall) CutUser(uid int, addrs []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out = append(f.out, fmt.Sprintf("meta skuid %d ip daddr { %s } drop", uid, strings.Join(addrs, ", ")))
	return f.load()
}

// Cut drops the packets of links in one or both directions: without a firewall the
// proxies stop forwarding, which their ends cannot tell from it.
func Cut(f *Firewall, d Direction, links ...*Proxy) error {
	for _, p := range links {
		if f == nil {
			p.Set(Toxic{Up: d != Down, Down: d != Up})
			continue
		}
		var rules []string
		if d != Down {
			rules = append(rules, fmt.Sprintf("ip daddr %s drop", p.IP()))
		}
		if d != Up {
			rules = append(rules, fmt.Sprintf("ip saddr %s drop", p.IP()))
		}
		if err := f.add(rules...); err != nil {
			return err
		}
	}
	return nil
}
