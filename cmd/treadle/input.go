package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// utf8BOM starts files that some editors of Windows write.
var utf8BOM = []byte("\ufeff")

// errUTF16 is what to say of text in an encoding that is not read.
var errUTF16 = errors.New("it is UTF-16: write it as UTF-8")

// withoutBOM takes off the mark at the start of text; UTF-16 is refused.
func withoutBOM(text []byte) ([]byte, error) {
	if bytes.HasPrefix(text, []byte{0xff, 0xfe}) || bytes.HasPrefix(text, []byte{0xfe, 0xff}) {
		return nil, errUTF16
	}
	return bytes.TrimPrefix(text, utf8BOM), nil
}

// jsonWord is the value of one word: the JSON that it is, else a string. A word that
// starts like a list, an object or a string of JSON and is none is an error, as it is
// sooner a slip than a string.
func jsonWord(word string) (json.RawMessage, error) {
	if json.Valid([]byte(word)) {
		return json.RawMessage(strings.TrimSpace(word)), nil
	}
	if trimmed := strings.TrimSpace(word); trimmed != "" && strings.ContainsRune(`[{"`, rune(trimmed[0])) {
		var v any
		return nil, fmt.Errorf("%s is broken JSON: %w", shown(trimmed), json.Unmarshal([]byte(trimmed), &v))
	}
	return textWord(word)
}

// textWord is a word as a string, whatever it looks like.
func textWord(word string) (json.RawMessage, error) {
	if !utf8.ValidString(word) {
		return nil, fmt.Errorf("%s is not UTF-8", shown(word))
	}
	return json.Marshal(word)
}

// shown quotes the start of what somebody wrote.
func shown(text string) string {
	if runes := []rune(text); len(runes) > 60 {
		text = string(runes[:59]) + "…"
	}
	return "'" + printable(strings.ToValidUTF8(text, "\ufffd")) + "'"
}

// argumentWord is [jsonWord] of the command line.
func argumentWord(word string) (json.RawMessage, error) {
	v, err := jsonWord(word)
	if err != nil {
		text, _ := json.Marshal(strings.ToValidUTF8(word, "\ufffd")) // a string is always JSON
		return nil, misuse("%w; for that text write it as JSON: '%s'", err, text)
	}
	return v, nil
}
