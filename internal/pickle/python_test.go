package pickle

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// python runs a script in CPython with input as JSON on stdin and decodes the JSON
// that it prints into output.
func python(t *testing.T, script string, input, output any) {
	t.Helper()
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("python3 is not on PATH: these tests compare with CPython")
	}
	in, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, "-c", script)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3: %v\n%s", err, stderr.Bytes())
	}
	if err := json.Unmarshal(out, output); err != nil {
		t.Fatalf("python3 printed %.200s: %v", out, err)
	}
}

// pattern returns n bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>3)
	}
	return b
}

func TestBase64LikePython(t *testing.T) {
	var inputs [][]byte
	for n := range 401 {
		inputs = append(inputs, pattern(n))
	}
	var want []string
	python(t, `
import base64, codecs, json, sys
print(json.dumps([codecs.encode(base64.b64decode(x), "base64").decode() for x in json.load(sys.stdin)]))
`, inputs, &want)
	for n, w := range want {
		got := Base64(inputs[n])
		if got != w {
			t.Fatalf("%d bytes: %q, Python writes %q", n, got, w)
		}
		if len(got) != EncodedLen(n) {
			t.Fatalf("%d bytes: EncodedLen says %d, it is %d", n, EncodedLen(n), len(got))
		}
	}
}

func TestDecodeBase64(t *testing.T) {
	for n := range 401 {
		data := pattern(n)
		plain := base64.StdEncoding.EncodeToString(data)
		mime := Base64(data)
		for _, text := range []string{
			plain, mime, strings.ReplaceAll(mime, "\n", "\r\n"), strings.TrimSpace(mime),
			" \t\v\f" + plain + "\r\n", strings.Join(strings.Split(plain, ""), "\n"),
		} {
			got, err := DecodeBase64(text)
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes as %q: %v", n, text, err)
			}
		}
		for _, cut := range []int{1, 2, 3} {
			if len(plain) < cut {
				continue
			}
			if _, err := DecodeBase64(plain[:len(plain)-cut]); err == nil {
				t.Fatalf("%d bytes: base64 cut by %d characters is accepted", n, cut)
			}
		}
	}
	for _, text := range []string{
		"a", "ab", "abc", "ab=c", "=abc", "abcd=", "ab==ab==", "ab\u00e9d", "ab-d", "ab_d", "ab*d", "abcd\x00", "====", "ab=\u2028=",
	} {
		if got, err := DecodeBase64(text); err == nil {
			t.Errorf("%q decodes to %q", text, got)
		}
	}
}

func TestExceptionLoads(t *testing.T) {
	attrs := []Attr{
		{"status", "FAILED"}, {"error_type", "WorkerFailureError"}, {"message", "lost \U0001f600 \"4\" times\n"},
		{"traceback", strings.Repeat("Traceback\n", 50)}, {"task_id", "0197c3a2-5e1c-7cc1-9d1a-3f6b0f9d2c11"}, {"worker_id", ""},
	}
	var pickles [][]byte
	classes := []string{"RuntimeError", "TimeoutError", "MemoryError", "ValueError"}
	for _, class := range classes {
		p := Exception(class, "WorkerFailureError: lost\xff", attrs)
		if err := Check(p); err != nil {
			t.Fatal(err)
		}
		pickles = append(pickles, p)
	}
	var got []struct {
		Class string
		Args  []string
		Attrs map[string]string
	}
	python(t, `
import base64, json, pickle, sys
loaded = [pickle.loads(base64.b64decode(x)) for x in json.load(sys.stdin)]
print(json.dumps([{"Class": type(e).__name__, "Args": e.args, "Attrs": vars(e)} for e in loaded]))
`, pickles, &got)
	for i, class := range classes {
		g := got[i]
		if g.Class != class || len(g.Args) != 1 || g.Args[0] != "WorkerFailureError: lost\uFFFD" || len(g.Attrs) != len(attrs) {
			t.Errorf("%s loads as %+v", class, g)
		}
		for _, a := range attrs {
			if g.Attrs[a.Name] != a.Value {
				t.Errorf("%s: %s is %q, want %q", class, a.Name, g.Attrs[a.Name], a.Value)
			}
		}
	}
}

func TestTextAndDictLoad(t *testing.T) {
	texts := []string{"", "x", strings.Repeat("y", 255), strings.Repeat("z", 256), strings.Repeat("\u20ac", 30_000), "\x00\n"}
	var dict []Attr
	var pickles [][]byte
	for i, s := range texts {
		pickles = append(pickles, Text(s))
		dict = append(dict, Attr{fmt.Sprint("key", i), s})
	}
	pickles = append(pickles, Dict(dict), Dict(nil))
	var got []any
	python(t, `
import base64, json, pickle, sys
print(json.dumps([pickle.loads(base64.b64decode(x)) for x in json.load(sys.stdin)]))
`, pickles, &got)
	for i, s := range texts {
		if got[i] != s {
			t.Errorf("text %d loads as %.40q", i, got[i])
		}
		if got[len(texts)].(map[string]any)[fmt.Sprint("key", i)] != s {
			t.Errorf("entry %d of the dict is lost", i)
		}
	}
	if empty, ok := got[len(texts)+1].(map[string]any); !ok || len(empty) != 0 {
		t.Errorf("an empty dict loads as %v", got[len(texts)+1])
	}
}

// TestJSONLoads compares with what Python itself reads from the same text: types,
// order of keys and every bit.
func TestJSONLoads(t *testing.T) {
	texts := []string{
		`null`, `true`, `false`, ` [ ] `, `{}`, `""`, `"a\"b\\c\/d\b\f\n\r\t"`,
		`0`, `-0`, `1`, `-1`, `255`, `256`, `65536`, `2147483647`, `2147483648`, `-2147483648`, `-2147483649`,
		`999999999999999999`, `-999999999999999999`, `9223372036854775807`, `9223372036854775808`, `-9223372036854775808`, `-9223372036854775809`,
		`18446744073709551616`, `-128`, `-129`, `340282366920938463463374607431768211455`, `-340282366920938463463374607431768211456`,
		`1` + strings.Repeat("0", 700), `-` + strings.Repeat("9", 4000),
		`0.1`, `-0.0`, `1e10`, `1E-7`, `2.5e+3`, `1e400`, `-1e400`, `1e-400`, `5e-324`, `1.7976931348623157e308`, `123456789012345678901234567890.5`,
		`"ü€😀"`, `"\u00fc\u20ac\ud83d\ude00"`, `"\ud800"`, `"\udc00\ud800x"`, `"\ud83dx"`, `"\ud83d\ud83d\ude00"`, `"\u0000"`,
		`{"b": 1, "a": 2, "b": 3, "": {"x": [1, [2, [3]]]}}`, `[[], {}, [{}], {"k": []}, null, true]`,
		strings.Repeat("[", 500) + strings.Repeat("]", 500),
		`[` + strings.TrimSuffix(strings.Repeat("1,", 3000), ",") + `]`,
	}
	type pair struct {
		Text   string
		Pickle []byte
	}
	var pairs []pair
	for _, text := range texts {
		p, err := JSON([]byte(text))
		if err != nil {
			t.Fatalf("%.60s: %v", text, err)
		}
		if err := Check(p); err != nil {
			t.Fatalf("%.60s: %v", text, err)
		}
		pairs = append(pairs, pair{text, p})
	}
	var wrong []string
	python(t, `
import base64, json, pickle, sys
wrong = []
for p in json.load(sys.stdin):
    want, got = json.loads(p["Text"]), pickle.loads(base64.b64decode(p["Pickle"]))
    if repr(want) != repr(got) or pickle.dumps(want) != pickle.dumps(got):
        wrong.append("%.80s -> %.80r" % (p["Text"], got))
print(json.dumps(wrong))
`, pairs, &wrong)
	for _, w := range wrong {
		t.Error(w)
	}
	for _, text := range []string{``, `nul`, `[1,]`, `{"a"}`, `1 2`, `NaN`, `Infinity`, `01`, "\"\xff\"", `[` + strings.Repeat("9", MaxIntDigits+1) + `]`} {
		if _, err := JSON([]byte(text)); err == nil {
			t.Errorf("%.40q is accepted", text)
		}
	}
}

func FuzzBase64(f *testing.F) {
	f.Add("gASVAgAAAAAAAABOLg==\n")
	f.Add("ab cd\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		data, err := DecodeBase64(text)
		if err != nil {
			return
		}
		again, err := DecodeBase64(Base64(data))
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%q decodes to %q, which does not survive: %q, %v", text, data, again, err)
		}
	})
}
