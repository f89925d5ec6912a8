package fabric

import (
	"slices"
	"strings"
	"testing"
)

func TestParseFilter(t *testing.T) {
	for filter, want := range map[string][]term{
		``:                       nil,
		`a=b`:                    {{"a", "=", "b"}},
		` a  <  "b \"c\" \\ d" `: {{"a", "<", `b "c" \ d`}},
		`a = b AND c > "AND"`:    {{"a", "=", "b"}, {"c", ">", "AND"}},
		`a=""`:                   {{"a", "=", ""}},
		`a="="AND b="<"`:         {{"a", "=", "="}, {"b", "=", "<"}},
		"a\t=\n\u00fc":           {{"a", "=", "\u00fc"}},
	} {
		got, err := parseFilter(filter)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", filter, got, err)
		}
	}
}

// What a filter says does not change when its values are quoted.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{`status = QUEUED`, `function="a b" AND worker = w`, `create_time > 2020-01-01T00:00:00Z`, `a = "\"" AND`, `"`, `\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		terms, err := parseFilter(s)
		if err != nil {
			return
		}
		var parts []string
		for _, x := range terms {
			quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(x.value)
			parts = append(parts, x.field+" "+x.op+` "`+quoted+`"`)
		}
		joined := strings.Join(parts, " AND ")
		if len(joined) > MaxFilter {
			return
		}
		again, err := parseFilter(joined)
		if err != nil || !slices.Equal(again, terms) {
			t.Fatalf("%q is %v, but %q is %v (%v)", s, terms, joined, again, err)
		}
	})
}
