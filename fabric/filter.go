package fabric

import (
	"context"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/treadle-dev/treadle/store"
	"github.com/treadle-dev/treadle/task"
)

// MaxFilter bounds the text of a filter, in bytes.
const MaxFilter = 4096

// term is one restriction of a filter.
type term struct{ field, op, value string }

// parseFilter reads the subset of AIP-160 that lists know: "field = value" and
// "field < value" joined by AND. Values may stand in double quotes, with
// backslashes before quotes and backslashes.
func parseFilter(filter string) ([]term, error) {
	if len(filter) > MaxFilter {
		return nil, invalid("filter", "filter has %d bytes: want at most %d", len(filter), MaxFilter)
	}
	words, err := filterWords(filter)
	if err != nil {
		return nil, err
	}
	var terms []term
	for i := 0; i < len(words); i += 4 {
		if i > 0 {
			if words[i-1].quoted || words[i-1].text != "AND" {
				return nil, invalid("filter", "filter: %q where AND is wanted", words[i-1].text)
			}
		}
		if len(words)-i < 3 {
			return nil, invalid("filter", `filter ends where "field = value" is wanted`)
		}
		field, op, value := words[i], words[i+1], words[i+2]
		if field.quoted || isOperator(field) {
			return nil, invalid("filter", "filter: %q where the name of a field is wanted", field.text)
		}
		if !isOperator(op) {
			return nil, invalid("filter", "filter: %q after %q: want =, < or >", op.text, field.text)
		}
		if isOperator(value) {
			return nil, invalid("filter", "filter: %q where a value for %s is wanted", value.text, field.text)
		}
		terms = append(terms, term{field.text, op.text, value.text})
		if len(words)-i == 4 {
			return nil, invalid("filter", "filter ends after %q", words[i+3].text)
		}
	}
	return terms, nil
}

type filterWord struct {
	text   string
	quoted bool
}

func isOperator(w filterWord) bool {
	return !w.quoted && (w.text == "=" || w.text == "<" || w.text == ">")
}

// filterWords splits a filter at spaces and operators.
func filterWords(s string) ([]filterWord, error) {
	var words []filterWord
	for {
		s = strings.TrimLeftFunc(s, unicode.IsSpace)
		if s == "" {
			return words, nil
		}
		switch s[0] {
		case '=', '<', '>':
			words = append(words, filterWord{text: s[:1]})
			s = s[1:]
		case '"':
			text, rest, ok := unquoteFilter(s)
			if !ok {
				return nil, invalid("filter", "filter: a quote is never closed")
			}
			words = append(words, filterWord{text: text, quoted: true})
			s = rest
		default:
			n := strings.IndexFunc(s, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`=<>"`, r) })
			if n < 0 {
				n = len(s)
			}
			words = append(words, filterWord{text: s[:n]})
			s = s[n:]
		}
	}
}

// unquoteFilter reads a quoted word at the start of s.
func unquoteFilter(s string) (text, rest string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s); {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			i++
			if i == len(s) {
				return "", "", false
			}
		}
		_, n := utf8.DecodeRuneInString(s[i:])
		b.WriteString(s[i : i+n])
		i += n
	}
	return "", "", false
}

// ListQuery turns a filter, a subset of AIP-160, into a query of the store. docs/rest.md has its
// fields.
func (f *Fabric) ListQuery(ctx context.Context, filter string) (store.ListQuery, error) {
	var q store.ListQuery
	terms, err := parseFilter(filter)
	if err != nil {
		return q, err
	}
	seen := make(map[string]bool)
	for _, t := range terms {
		if t.field == "created_at" {
			t.field = "create_time"
		}
		key := t.field
		if t.field == "create_time" {
			key += t.op
		}
		if seen[key] {
			return q, invalid("filter", "filter: %s %s is given twice", t.field, t.op)
		}
		seen[key] = true
		if (t.op == "=") == (t.field == "create_time") {
			if !knownField[t.field] {
				return q, unknownField(t.field)
			}
			return q, invalid("filter", "filter: %s %s is not supported: status, function, parent and worker take =, create_time takes < and >", t.field, t.op)
		}
		if err := f.applyTerm(ctx, &q, t); err != nil {
			return q, err
		}
	}
	return q, nil
}

var knownField = map[string]bool{"status": true, "function": true, "parent": true, "worker": true, "create_time": true}

func unknownField(name string) error {
	return invalid("filter", "filter: unknown field %.64q: want status, function, parent, worker or create_time", name)
}

func (f *Fabric) applyTerm(ctx context.Context, q *store.ListQuery, t term) error {
	switch t.field {
	case "status":
		q.Status = task.Status(t.value)
		if !q.Status.Known() {
			return invalid("filter", "filter: status %.64q: want QUEUED, RUNNING, COMPLETED, FAILED or CANCELLED", t.value)
		}
	case "function":
		fn, err := f.Function(ctx, t.value)
		if err != nil {
			return err
		}
		q.Function = fn.ID
	case "parent":
		id, err := task.ParseID(t.value)
		if err != nil {
			return invalid("filter", "filter: parent: %w", err)
		}
		q.Parent = id
	case "worker":
		q.Worker = t.value
	case "create_time":
		at, err := time.Parse(time.RFC3339Nano, t.value)
		if err != nil {
			return invalid("filter", "filter: create_time %.64q: want a time as in RFC 3339, for example 2026-01-02T15:04:05Z", t.value)
		}
		if t.op == "<" {
			q.CreatedBefore = at
		} else {
			q.CreatedAfter = at
		}
	default:
		return unknownField(t.field)
	}
	return nil
}
