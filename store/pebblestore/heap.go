package pebblestore

// timeHeap orders entries by a moment (nanoseconds since 1970). Every entry knows
// its place in each heap, so that it can leave at any time in O(log n).
type timeHeap struct {
	// slot is the index in entry.pos that this heap owns.
	slot  int
	items []timeItem
}

type timeItem struct {
	at int64
	e  *entry
}

// Slots of entry.pos. A position is stored plus one; zero means "not in the heap".
const (
	slotLease = iota
	slotDeadline
	slotDelay
	slots
)

func (h *timeHeap) set(i int, it timeItem) {
	h.items[i] = it
	it.e.pos[h.slot] = int32(i + 1)
}

func (h *timeHeap) push(e *entry, at int64) {
	h.items = append(h.items, timeItem{})
	h.up(len(h.items)-1, timeItem{at, e})
}

// remove takes e out; it is no error when e is not in.
func (h *timeHeap) remove(e *entry) {
	i := int(e.pos[h.slot]) - 1
	if i < 0 {
		return
	}
	e.pos[h.slot] = 0
	last := len(h.items) - 1
	it := h.items[last]
	h.items[last] = timeItem{}
	h.items = h.items[:last]
	if i == last {
		return
	}
	if i > 0 && it.at < h.items[(i-1)/2].at {
		h.up(i, it)
	} else {
		h.down(i, it)
	}
}

// rekey moves the first item to a later moment.
func (h *timeHeap) rekey(at int64) {
	h.down(0, timeItem{at, h.items[0].e})
}

func (h *timeHeap) up(i int, it timeItem) {
	for i > 0 {
		parent := (i - 1) / 2
		if h.items[parent].at <= it.at {
			break
		}
		h.set(i, h.items[parent])
		i = parent
	}
	h.set(i, it)
}

func (h *timeHeap) down(i int, it timeItem) {
	for {
		child := 2*i + 1
		if child >= len(h.items) {
			break
		}
		if r := child + 1; r < len(h.items) && h.items[r].at < h.items[child].at {
			child = r
		}
		if it.at <= h.items[child].at {
			break
		}
		h.set(i, h.items[child])
		i = child
	}
	h.set(i, it)
}
