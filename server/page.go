package server

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"

	"github.com/treadle-dev/treadle/task"
)

// Sizes of pages.
const (
	defaultPage = 100
	maxPage     = 1000
	// maxListRounds bounds how often the store is asked for one page.
	maxListRounds = 50
)

// Kinds of page tokens: the token of one list is no token of another.
const (
	pageFunctions byte = 'f'
	pageTasks     byte = 't'
	pageWorkers   byte = 'w'
	pageQueues    byte = 'q'
)

func pageSize(n int32) (int, error) {
	switch {
	case n < 0:
		return 0, invalid("page_size", "page_size %d: want 1 to %d, or 0 for %d", n, maxPage, defaultPage)
	case n == 0:
		return defaultPage, nil
	default:
		return min(int(n), maxPage), nil
	}
}

// pageToken says where the next page starts. It holds a hash of the filter, as a
// token is good for the same list only.
func pageToken(next task.ID, kind byte, filter string) string {
	sum := sha256.Sum256([]byte(filter))
	b := append([]byte{kind}, next[:]...)
	return base64.RawURLEncoding.EncodeToString(append(b, sum[:8]...))
}

func parsePageToken(token string, kind byte, filter string) (task.ID, error) {
	if token == "" {
		return task.ID{}, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) != 1+16+8 || b[0] != kind {
		return task.ID{}, invalid("page_token", "page_token is not one of this list: pass next_page_token as it came")
	}
	id, err := task.IDFromBytes(b[1:17])
	if err != nil || pageToken(id, kind, filter) != token {
		return task.ID{}, invalid("page_token", "page_token belongs to another filter: repeat the request with the filter it came from")
	}
	return id, nil
}

// keyToken says after which record, by the texts that it sorts by, the next page starts.
func keyToken(kind byte, key ...string) string {
	b, err := json.Marshal(key)
	if err != nil {
		panic(err) // strings always have a form
	}
	return base64.RawURLEncoding.EncodeToString(append([]byte{kind}, b...))
}

// parseKeyToken reads a token of n texts; given is false for the first page.
func parseKeyToken(token string, kind byte, n int) (key []string, given bool, err error) {
	if token == "" {
		return nil, false, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) == 0 || b[0] != kind || json.Unmarshal(b[1:], &key) != nil || len(key) != n {
		return nil, false, invalid("page_token", "page_token is not one of this list: pass next_page_token as it came")
	}
	return key, true, nil
}
