package pickle

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

// corpus returns what Python's picklers really write; testdata/make.py made it.
func corpus(t testing.TB) map[string][]byte {
	t.Helper()
	r, err := zip.OpenReader("testdata/corpus.zip")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	files := make(map[string][]byte)
	for _, f := range r.File {
		rc, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		rc.Close()
		files[f.Name] = data
	}
	if len(files) < 150 {
		t.Fatalf("the corpus has %d pickles", len(files))
	}
	return files
}

func TestCheckAcceptsWhatPythonWrites(t *testing.T) {
	for name, data := range corpus(t) {
		if err := Check(data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckRefusesEveryTruncation(t *testing.T) {
	for name, data := range corpus(t) {
		step := max(1, len(data)/500)
		for n := 0; n < len(data); n += step {
			if Check(data[:n]) == nil {
				t.Fatalf("%s: the first %d of %d bytes pass as a whole pickle", name, n, len(data))
			}
		}
		if Check(append(bytes.Clone(data), '.')) == nil || Check(append(bytes.Clone(data), data...)) == nil {
			t.Errorf("%s: bytes after the end are accepted", name)
		}
	}
}

func frame(n uint64, body string) string {
	return "\x80\x04\x95" + string(binary.LittleEndian.AppendUint64(nil, n)) + body
}

func TestCheckByHand(t *testing.T) {
	for _, c := range []struct {
		name, data string
		ok         bool
	}{
		{"none", "\x80\x02N.", true},
		{"protocol 5", "\x80\x05N.", true},
		{"leftovers below the result", "\x80\x04NN.", true},
		{"protocol repeated", "\x80\x04\x80\x04N.", true},
		{"text opcodes", "\x80\x02(I1\nL2L\nF3.5\nS'x'\nVy\nt.", true},
		{"memo by text", "\x80\x02]p0\ng0\na.", true},
		{"mark popped", "\x80\x02N(0.", true},
		{"frame", frame(2, "N."), true},
		{"two frames", frame(1, "N\x95\x01\x00\x00\x00\x00\x00\x00\x00."), true},
		{"value between frames", frame(1, "NU\x01x0."), true},
		{"empty frame", frame(0, "N."), true},

		{"empty", "", false},
		{"text", "payload", false},
		{"protocol 0", "N.", false},
		{"protocol 1", "\x80\x01N.", false},
		{"protocol 6", "\x80\x06N.", false},
		{"protocol 6 later", "\x80\x04\x80\x06N.", false},
		{"only the protocol", "\x80\x04", false},
		{"first byte", "\x80", false},
		{"STOP at once", "\x80\x04.", false},
		{"no STOP", "\x80\x04N", false},
		{"two STOPs", "\x80\x04N..", false},
		{"trailing newline", "\x80\x04N.\n", false},
		{"unknown opcode", "\x80\x04\xffN.", false},
		{"stack underflow", "\x80\x04\x85.", false},
		{"REDUCE of one", "\x80\x04NR.", false},
		{"no mark", "\x80\x04Nt.", false},
		{"open mark at STOP", "\x80\x04(N.", false},
		{"stack below a mark", "\x80\x04N(\x85.", false},
		{"odd dict", "\x80\x04}(Nu.", false},
		{"items for nothing", "\x80\x04(NNu.", false},
		{"length over the end", "\x80\x04X\xff\xff\xff\x7fab.", false},
		{"length of 2^63", "\x80\x04\x8d\x00\x00\x00\x00\x00\x00\x00\x80ab.", false},
		{"huge memo index", "\x80\x04Nr\xff\xff\xff\x7f.", false},
		{"huge memo index in text", "\x80\x02Np999999999999\n.", false},
		{"memo index in words", "\x80\x02Npx\n.", false},
		{"memo never written", "\x80\x04h\x00.", false},
		{"memo on an empty stack", "\x80\x04\x94N.", false},
		{"line without end", "\x80\x02I1.", false},
		{"frame over the end", frame(3, "N."), false},
		{"frame ends inside an opcode", frame(2, "U\x01x."), false},
		{"frame in a frame", frame(12, "\x95\x00\x00\x00\x00\x00\x00\x00\x00NN."), false},
		{"frame after STOP", frame(1, "N.\x95\x00\x00\x00\x00\x00\x00\x00\x00"), false},
	} {
		if err := Check([]byte(c.data)); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A walk's memory follows from the size of its input, whatever the input says.
func TestCheckBounds(t *testing.T) {
	many := "\x80\x04(" + strings.Repeat("K\x01", 100_000) + "t."
	if err := Check([]byte(many)); err != nil {
		t.Errorf("100,000 arguments: %v", err)
	}
	marks := "\x80\x04" + strings.Repeat("(", maxMarks+1) + "."
	if err := Check([]byte(marks)); err == nil || !strings.Contains(err.Error(), "open marks") {
		t.Errorf("%d marks: %v", maxMarks+1, err)
	}
	memo := []byte("\x80\x04N" + strings.Repeat("\x94", 1<<20) + ".")
	allocs := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if err := Check(memo); err != nil {
				b.Fatal(err)
			}
		}
	})
	if got := allocs.AllocedBytesPerOp(); got > int64(len(memo)) {
		t.Errorf("checking %d bytes allocated %d", len(memo), got)
	}
}

func FuzzCheck(f *testing.F) {
	for _, data := range corpus(f) {
		if len(data) < 2000 {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if Check(data) != nil {
			return
		}
		// A whole pickle is whole only as it is.
		if Check(data[:len(data)-1]) == nil {
			t.Fatal("it is whole without its last byte, too")
		}
		if Check(append(bytes.Clone(data), 'N')) == nil {
			t.Fatal("it is whole with one more byte, too")
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	data := corpus(b)["args.dill.4"]
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := Check(data); err != nil {
			b.Fatal(err)
		}
	}
}

// Clients and workers write the Python version that a pickle's bytecode is for behind its
// PROTOCOL opcode: SHORT_BINUNICODE and POP, before the first frame.
func TestCheckAcceptsTheMarkOfAPython(t *testing.T) {
	mark := append([]byte("\x8c\x13"), "treadle/python=3.120"...)
	for name, data := range corpus(t) {
		marked := append(append(bytes.Clone(data[:2]), mark...), data[2:]...)
		if err := Check(marked); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := append([]byte("\x80\x04\x8c\x13"), "treadle/python=3.1200N."...)
	if Check(bad) == nil {
		t.Error("a POP too many is accepted")
	}
}
