package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/pflag"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

func TestTableFitsItsTerminal(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("0", 36)
	for _, width := range []int{0, 200, 120, 80, 10} {
		var out bytes.Buffer
		table := newTable(&out, "TASK", "FUNCTION", "TOOK", "WORKER", "ERROR")
		table.row(id, "double", "1.20s", strings.Repeat("w", 36), "ValueError: "+strings.Repeat("né ", 20))
		table.row(id, "d", "1234.56ms", "w", "")
		if err := table.write(width); err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(strings.TrimRight(out.String(), "\n"), "\n")[1:] {
			// A terminal that is too narrow for ids and the least of the others gets that.
			if n := utf8.RuneCountInString(line); width > 90 && n > width {
				t.Errorf("%d columns on a terminal of %d: %s", n, width, line)
			}
			if !strings.HasPrefix(line, id) {
				t.Errorf("an id was cut at width %d: %s", width, line)
			}
		}
		if lines := strings.Split(out.String(), "\n"); width == 0 && strings.Index(lines[1], "1.20s")+len("1.20s") != strings.Index(lines[2], "1234.56ms")+len("1234.56ms") {
			t.Errorf("TOOK is not aligned:\n%s", out.String())
		}
	}
}

func TestSpan(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		1200 * time.Millisecond: "1.20s", 999 * time.Microsecond: "999.00µs", 2 * time.Millisecond: "2.00ms", 90 * time.Second: "1m30s", 0: "0s", 7: "0s",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%d) = %s, want %s", d, got, want)
		}
	}
}

func TestVisible(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"a\tb\nc": "a\tb\nc", "\x1b[2J\x1b]0;title\a": `\x1b[2J\x1b]0;title\a`, "1%\r2%\r\n": "1%\n2%\n", "\u202eevil": `\u202eevil`, "\u009b31m": `\u009b31m`, "é😀": "é😀",
	} {
		if got := visible(text); got != want {
			t.Errorf("visible(%q) = %q, want %q", text, got, want)
		}
	}
	var out bytes.Buffer
	if got := harmless(&out, "\x1b"); got != "\x1b" {
		t.Errorf("what is no terminal gets all bytes, not %q", got)
	}
}

func TestRegisterReadsEncodings(t *testing.T) {
	fake(t)
	dir := t.TempDir()
	write := func(text string) string {
		file := filepath.Join(dir, "f.py")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file + ":f"
	}
	const f = "def f(): return 'caf\xe9'\n"
	fn := decode[treadle.Function](t, cli(t, "", "register", write("#!/usr/bin/python\n# -*- coding: latin-1 -*-\n"+f), "--json").wantOK(t))
	if want := len("#!/usr/bin/python\n# -*- coding: latin-1 -*-\n") + len(f) + 1; fn.PayloadSize != want {
		t.Errorf("%d bytes, want %d: é has two in UTF-8", fn.PayloadSize, want)
	}
	fn = decode[treadle.Function](t, cli(t, "", "register", write("\xef\xbb\xbfdef f(): pass\n"), "--json").wantOK(t))
	if fn.PayloadSize != len("def f(): pass\n") {
		t.Errorf("with a byte order mark: %d bytes", fn.PayloadSize)
	}
	for text, word := range map[string]string{
		"# x\n" + f:                   "line 2 is not UTF-8, and the file declares no encoding",
		"# coding: koi8-r\n" + f:      `only Latin-1 is supported (the file declares "koi8-r")`,
		"\n\n# coding: latin-1\n" + f: "line 4 is not UTF-8, and the file declares no encoding",
		"\xff\xfed\x00e\x00f\x00":     "UTF-16",
	} {
		cli(t, "", "register", write(text)).want(t, exitMisuse, "f.py: ", word)
	}
}

// TestFlagsHaveGroups: a flag of a long list belongs somewhere.
func TestFlagsHaveGroups(t *testing.T) {
	for _, cmd := range commands(newRootCommand()) {
		count := 0
		cmd.LocalFlags().VisitAll(func(*pflag.Flag) { count++ })
		if count < manyFlags {
			continue
		}
		help := cli(t, "", cmd.Name(), "--help").wantOK(t)
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && (groupOf(f.Name) == "" || !strings.Contains(help, "--"+f.Name+" ")) {
				t.Errorf("%s: --%s is in no group of the help", cmd.CommandPath(), f.Name)
			}
		})
		if !strings.Contains(help, "\nSecurity:\n") || strings.Contains(help, "\nFlags:\n") {
			t.Errorf("%s has no groups:\n%s", cmd.CommandPath(), help)
		}
	}
}
