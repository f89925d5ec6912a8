package task

import (
	"strings"
	"testing"
	"time"
)

func TestOutcomesThatNoWorkerMayReport(t *testing.T) {
	for name, c := range map[string]struct {
		out  Outcome
		want Code
	}{
		"success":         {Outcome{End: EndSucceeded, Result: []byte("1234"), Encoding: EncodingJSON}, CodeUnknown},
		"empty success":   {Outcome{End: EndSucceeded}, CodeUnknown},
		"returned":        {Outcome{End: EndReturned}, CodeUnknown},
		"one byte more":   {Outcome{End: EndSucceeded, Result: []byte("12345"), Encoding: EncodingPickle}, CodeTooLarge},
		"no end":          {Outcome{}, CodeInvalid},
		"lapsed":          {Outcome{End: EndLapsed}, CodeInvalid},
		"unknown end":     {Outcome{End: End(strings.Repeat("x", 1<<20))}, CodeInvalid},
		"unknown coding":  {Outcome{End: EndSucceeded, Result: []byte("1"), Encoding: "marshal"}, CodeInvalid},
		"no coding":       {Outcome{End: EndSucceeded, Result: []byte("1")}, CodeInvalid},
		"failed, result":  {Outcome{End: EndRaised, Result: []byte("1"), Encoding: EncodingJSON}, CodeInvalid},
		"a day's delay":   {Outcome{End: EndRaised, RetryAfter: 24 * time.Hour}, CodeUnknown},
		"more than a day": {Outcome{End: EndRaised, RetryAfter: 24*time.Hour + 1}, CodeInvalid},
		"into the past":   {Outcome{End: EndRaised, RetryAfter: -1}, CodeInvalid},
		"failed, unknown": {Outcome{End: EndRaised, Encoding: "marshal"}, CodeInvalid},
	} {
		err := c.out.Check(4)
		if got := CodeOf(err); got != c.want || (err == nil) != (c.want == CodeUnknown) {
			t.Errorf("%s: %v, want the code %q", name, err, c.want)
		}
		if err != nil && len(err.Error()) > 200 {
			t.Errorf("%s: the text has %d bytes", name, len(err.Error()))
		}
	}
	large := Outcome{End: EndSucceeded, Result: make([]byte, 1<<20), Encoding: EncodingJSON}
	if err := large.Check(0); err != nil {
		t.Errorf("without a bound: %v", err)
	}
}

func TestTimeoutMargin(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{
		-time.Second: 5 * time.Second, 0: 5 * time.Second, 10 * time.Second: 6 * time.Second, time.Hour: 5*time.Minute + 5*time.Second,
	} {
		if got := TimeoutMargin(timeout); got != want {
			t.Errorf("timeout %s: %s, want %s", timeout, got, want)
		}
	}
}
