package jsonscan

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

var seeds = []string{
	`null`, `true`, `false`, `0`, `-0`, `12`, `1.5e-7`, `1E+9`, `""`, `"a\u00e9\n\"\\"`, `"\ud83d\ude00"`, `"\ud800"`, `[]`, `[1,"x",null]`,
	`{}`, `{"a":{"b":[{}]},"a":1}`, " \t\r\n{ \"k\" : [ 1 , 2 ] } ", `[1,]`, `{"a"}`, `{"a":}`, `{,}`, `01`, `1.`, `.5`, `1e`, `+1`, `nul`, `NaN`,
	`"`, `"\`, `"\u12`, `"\x"`, "\"\n\"", "\"\xff\"", `{"a":1}x`, `[[[[`, `]`, ``, ` `, `"a" "b"`, `tru`, `-`, "\x00", "\ufeff{}",
}

func TestCheckAgreesWithTheStandardLibrary(t *testing.T) {
	for _, s := range seeds {
		agree(t, []byte(s))
	}
}

func agree(t *testing.T, data []byte) {
	t.Helper()
	want := json.Valid(data) && utf8.Valid(data)
	kind, err := Check(data)
	if err != nil && strings.Contains(err.Error(), "nested deeper") {
		return
	}
	if (err == nil) != want {
		t.Fatalf("%q: %v, the standard library says %v", data, err, want)
	}
	if err != nil {
		return
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return // a number out of range, say
	}
	switch x := v.(type) {
	case nil:
		want = kind == Null
	case bool:
		want = kind == Bool
	case float64:
		want = kind == Number
	case []any:
		want = kind == Array
	case map[string]any:
		want = kind == Object
	case string:
		want = kind == String
		raw, err := New(data).RawString()
		if err != nil {
			t.Fatal(err)
		}
		got, lone := Unquote(nil, raw)
		if !lone && string(got) != x {
			t.Fatalf("%q decodes to %q, the standard library says %q", data, got, x)
		}
		if lone != !utf8.Valid(got) {
			t.Fatalf("%q decodes to %q, lone surrogates: %v", data, got, lone)
		}
	}
	if !want {
		t.Fatalf("%q is taken for %v", data, kind)
	}
}

func TestSkipKeepsEveryByte(t *testing.T) {
	const text = ` {"a" : 123456789012345678901234567890 , "b": [ 1.0, "\u00e9" ] } tail`
	s := New([]byte(text))
	raw, err := s.Skip()
	if err != nil || string(raw) != strings.TrimSuffix(strings.TrimSpace(text), " tail") {
		t.Fatalf("%q, %v", raw, err)
	}
	if err := s.End(); err == nil || err.(*SyntaxError).Offset != len(text)-4 {
		t.Fatalf("the tail is reported as %v", err)
	}
}

func TestDepth(t *testing.T) {
	for _, pair := range []string{"[]", "{}"} {
		nest := func(n int) []byte {
			if pair == "{}" {
				return []byte(strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n))
			}
			return []byte(strings.Repeat("[", n) + strings.Repeat("]", n))
		}
		if _, err := Check(nest(MaxDepth)); err != nil {
			t.Errorf("depth %d of %s: %v", MaxDepth, pair, err)
		}
		if _, err := Check(nest(MaxDepth + 1)); err == nil {
			t.Errorf("depth %d of %s is accepted", MaxDepth+1, pair)
		}
	}
}

func TestAppendString(t *testing.T) {
	for _, s := range []string{"", "plain", "\"\\\n\r\t\b\f\x00\x1f\x7f", "ü€😀", "\xff\xfea\xc3", "</script>", "\u2028"} {
		var got string
		if err := json.Unmarshal(AppendString(nil, s), &got); err != nil || got != strings.ToValidUTF8(s, "\uFFFD") && !strings.Contains(s, "\xff") {
			t.Errorf("%q becomes %s: %v", s, AppendString(nil, s), err)
		}
	}
	if got := AppendString(nil, "\xff\xfea\xc3"); !bytes.Equal(got, []byte(`"��a�"`)) {
		t.Errorf("invalid bytes become %s", got)
	}
}

func FuzzCheck(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) { agree(t, data) })
}

func BenchmarkCheck(b *testing.B) {
	data := []byte(`{"name":"x","payload":"` + strings.Repeat(strings.Repeat("A", 76)+`\n`, 10_000) + `"}`)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Check(data); err != nil {
			b.Fatal(err)
		}
	}
}
