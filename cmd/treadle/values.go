package main

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// byteSize is a flag's value in bytes: "64MiB", "512M", "1.5GiB", "1000", "off". The
// letters K, M, G and T count by 1024, with or without "iB"; "kB", "MB", "GB" and "TB"
// by 1000.
type byteSize int64

var byteUnits = []struct {
	suffix string
	factor float64
}{
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"tib", 1 << 40},
	{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"tb", 1e12},
	{"k", 1 << 10}, {"m", 1 << 20}, {"g", 1 << 30}, {"t", 1 << 40}, {"b", 1},
}

func parseByteSize(text string) (byteSize, error) {
	s := strings.ToLower(strings.TrimSpace(text))
	if s == "off" || s == "none" {
		return 0, nil
	}
	factor := 1.0
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n < 0 || math.IsNaN(n) || n*factor > math.MaxInt64/2 || strings.ContainsAny(s, "xpie_+") {
		return 0, fmt.Errorf("want a size such as 64MiB, 512M or 1000000")
	}
	return byteSize(n * factor), nil
}

// Set implements pflag.Value.
func (b *byteSize) Set(text string) error {
	v, err := parseByteSize(text)
	if err == nil {
		*b = v
	}
	return err
}

// Type implements pflag.Value: the word in the help.
func (b *byteSize) Type() string { return "size" }

func (b *byteSize) String() string { return formatBytes(int64(*b)) }

// formatBytes writes a size in the largest unit that keeps it exact to two digits.
func formatBytes(n int64) string {
	for i := 3; i >= 0; i-- {
		u := byteUnits[i]
		if float64(n) >= u.factor {
			name := strings.ToUpper(u.suffix[:1]) + "iB"
			return strconv.FormatFloat(math.Round(float64(n)/u.factor*100)/100, 'f', -1, 64) + name
		}
	}
	if n == 0 {
		return "0"
	}
	return strconv.FormatInt(n, 10) + "B"
}

// exactBytes is [formatBytes], with the number of bytes where that was rounded, so that a
// value beside a limit does not read like it.
func exactBytes(n int64) string {
	text := formatBytes(n)
	if back, err := parseByteSize(text); err != nil || int64(back) != n {
		return fmt.Sprintf("%s (%d bytes)", text, n)
	}
	return text
}

// choice is a flag's value that is one of a few words, in any case.
type choice struct {
	value *string
	words []string
}

func newChoice(value *string, initial string, words ...string) *choice {
	*value = initial
	return &choice{value, words}
}

// completeChoices lets shells complete the words of every choice that the command has so far.
func completeChoices(cmd *cobra.Command) {
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if c, ok := f.Value.(*choice); ok {
			// It fails only for a flag that the command does not have.
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(c.words, cobra.ShellCompDirectiveNoFileComp))
		}
	})
}

// Set implements pflag.Value.
func (c *choice) Set(text string) error {
	i := slices.IndexFunc(c.words, func(word string) bool { return strings.EqualFold(word, text) })
	if i < 0 {
		return fmt.Errorf("want one of %s", strings.Join(c.words, ", "))
	}
	*c.value = c.words[i]
	return nil
}

// Type implements pflag.Value: the word in the help.
func (c *choice) Type() string   { return strings.Join(c.words, "|") }
func (c *choice) String() string { return *c.value }

// pathList is a flag that may be repeated, a folder each time. Its twin in the
// environment lists folders like PATH does.
type pathList []string

// Set implements pflag.Value.
func (p *pathList) Set(text string) error {
	if text == "" {
		return fmt.Errorf("want a folder")
	}
	*p = append(*p, text)
	return nil
}

// SetEnv reads the variable.
func (p *pathList) SetEnv(text string) error {
	list := slices.DeleteFunc(filepath.SplitList(text), func(s string) bool { return s == "" })
	if len(list) == 0 {
		return fmt.Errorf("want folders, separated by %q", filepath.ListSeparator)
	}
	*p = list
	return nil
}

// Type implements pflag.Value: the word in the help.
func (p *pathList) Type() string   { return "dir" }
func (p *pathList) String() string { return strings.Join(*p, string(filepath.ListSeparator)) }
