package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func addJSONFlag(cmd *cobra.Command, value *bool, usage string) {
	cmd.Flags().BoolVar(value, "json", false, usage)
}

// printJSON writes one value as one line of JSON.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// isTerminal reports whether a stream of the program is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// table writes rows in columns, at most as wide as the terminal that they go to.
type table struct {
	w    io.Writer
	rows [][]string
}

// counts are columns whose values stand to the right, one below the other.
var counts = []string{"AGE", "TOOK", "ATTEMPTS", "PID", "SLOTS", "RUNNING", "OFFERED", "SEEN", "QUEUED", "SIZE"}

const (
	columnGap = 2
	// leastColumn is what a column keeps when the terminal is narrow.
	leastColumn = 8
)

func newTable(w io.Writer, header ...string) *table {
	t := &table{w: w}
	t.row(header...)
	return t
}

// row adds one row. Text of others is made safe for a terminal and a table.
func (t *table) row(cells ...string) {
	row := make([]string, len(cells))
	for i, c := range cells {
		if row[i] = printable(c); row[i] == "" {
			row[i] = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// flush writes the rows.
func (t *table) flush() error { return t.write(terminalWidth(t.w)) }

// write lays the rows out in a width; 0 is any. The first column, which names things, is
// never shortened.
func (t *table) write(width int) error {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	narrow(widths, width)
	out := bufio.NewWriter(t.w)
	for _, row := range t.rows {
		var line strings.Builder
		for i, c := range row {
			if runes := []rune(c); len(runes) > widths[i] {
				c = string(runes[:widths[i]-1]) + "…"
			}
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			if slices.Contains(counts, t.rows[0][i]) {
				line.WriteString(pad + c)
			} else {
				line.WriteString(c + pad)
			}
			line.WriteString(strings.Repeat(" ", columnGap))
		}
		if _, err := out.WriteString(strings.TrimRight(line.String(), " ") + "\n"); err != nil {
			return err
		}
	}
	return out.Flush()
}

// narrow takes from the widest columns what is too much.
func narrow(widths []int, width int) {
	if width <= 0 {
		return
	}
	total := -columnGap
	for _, w := range widths {
		total += w + columnGap
	}
	for total > width {
		widest := 1
		for i := 2; i < len(widths); i++ {
			if widths[i] > widths[widest] {
				widest = i
			}
		}
		if widest >= len(widths) || widths[widest] <= leastColumn {
			return
		}
		widths[widest]--
		total--
	}
}

// terminalWidth is how many columns a terminal has; 0 for what is none.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// harmless is a text as it may go to a stream: on a terminal control characters are shown
// and do nothing, elsewhere all bytes stay.
func harmless(stream any, text string) string {
	if !isTerminal(stream) {
		return text
	}
	return visible(text)
}

// visible shows control characters, line ends and tabs excepted. What draws over its own
// line, as progress bars do, gets a line each time.
func visible(text string) string {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\n', r == '\t':
			b.WriteRune(r)
		case r == '\r':
			b.WriteByte('\n')
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// printable replaces control characters, so that a name cannot move the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// firstLine shortens a text for one cell.
func firstLine(s string, limit int) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if r := []rune(s); len(r) > limit {
		return string(r[:limit-1]) + "…"
	}
	return s
}

// stamp writes a time for people; "" for none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// age writes how long ago something was.
func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := max(now.Sub(t), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// span writes how long something took, to three digits.
func span(d time.Duration) string {
	for _, unit := range []struct {
		least time.Duration
		name  string
	}{{time.Second, "s"}, {time.Millisecond, "ms"}, {time.Microsecond, "µs"}} {
		if d >= unit.least && d < time.Minute {
			// With both digits, so that columns of them stand in line.
			return strconv.FormatFloat(float64(d)/float64(unit.least), 'f', 2, 64) + unit.name
		}
	}
	return d.Round(10 * time.Millisecond).String()
}
