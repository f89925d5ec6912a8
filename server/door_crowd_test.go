package server

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestDoorStorm: addresses that open connections faster than those get old keep nobody out
// who has fewer, and drive none of his out.
func TestDoorStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newDoorRoom(t, newDoorLimits(512, true)) // 256 of them fresh, 64 of an address
		var all []*doorConn
		storm := func() {
			for i := range 512 {
				if c := r.comes(fmt.Sprintf("10.0.0.%d", i%5)); c != nil {
					all = append(all, c)
				}
			}
		}
		storm()
		honest := r.mustCome("10.0.9.9") // although no other is old enough to be driven out
		for range 3 {
			time.Sleep(evictAge)
			storm()
			all = append(all, r.mustCome("10.0.9.9"))
		}
		if isClosed(honest) {
			t.Error("a connection of an address with few was driven out by those of addresses with many")
		}
		if _, fresh := r.d.counts(); fresh > 256+sideRoom {
			t.Errorf("%d connections without an admitted call", fresh)
		}
		r.empty(append(all, honest)...)
	})
}

// TestDoorWithoutCrowd: where no address has many, the oldest goes, once it is old enough.
func TestDoorWithoutCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newDoorRoom(t, newDoorLimits(512, true))
		var all []*doorConn
		for i := range 256 {
			all = append(all, r.mustCome(fmt.Sprintf("10.0.%d.%d", i%9, i%13)))
		}
		if c := r.comes("10.0.9.9"); c == nil || !c.aside {
			t.Error("a newcomer drove out another one")
		} else {
			all = append(all, c)
		}
		time.Sleep(evictAge)
		all = append(all, r.mustCome("10.0.9.9"))
		if !isClosed(all[0]) {
			t.Error("the oldest stays")
		}
		r.empty(all...)
	})
}
