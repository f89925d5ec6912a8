//go:build !chaos

package storetap

import "github.com/treadle-dev/treadle/store"

// Wrap returns s.
func Wrap(s store.Store) store.Store { return s }
