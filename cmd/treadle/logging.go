package main

import (
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/treadle-dev/treadle/internal/logfold"
)

// newLogger builds the logger of a server: level is debug, info, warn or error,
// format text or json. It folds what one cause repeats; flush writes the numbers that are
// owed then, and must be called before the program ends.
func newLogger(w io.Writer, level, format string) (log *slog.Logger, flush func(), err error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(strings.ToUpper(level))); err != nil {
		return nil, nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	var out slog.Handler
	switch format {
	case "text":
		out = slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})
	case "json":
		out = slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l, ReplaceAttr: asText})
	default:
		return nil, nil, fmt.Errorf("--log-format %q: want text or json", format)
	}
	fold := logfold.New(out, logfold.Options{})
	return slog.New(fold), fold.Close, nil
}

// asText gives JSON logs the words of text logs where JSON would have a bare number of
// nanoseconds, or nothing of a type that says by itself what it is.
func asText(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindDuration:
		a.Value = slog.StringValue(a.Value.Duration().String())
	case slog.KindAny:
		v := a.Value.Any()
		switch v.(type) {
		case error, json.Marshaler, encoding.TextMarshaler:
			return a
		}
		if s, ok := v.(fmt.Stringer); ok {
			a.Value = slog.StringValue(s.String())
		}
	}
	return a
}
