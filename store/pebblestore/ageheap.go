package pebblestore

// ageHeap is a heap of things by age, the smallest number first. The number of an item
// may be too small, as it is put right only when the item comes up: an age that has
// changed is larger than before, so nobody is overtaken.
type ageHeap[T any] []aged[T]

type aged[T any] struct {
	age uint64
	of  T
}

func (h *ageHeap[T]) push(age uint64, of T) {
	*h = append(*h, aged[T]{})
	a := *h
	i := len(a) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if a[parent].age <= age {
			break
		}
		a[i] = a[parent]
		i = parent
	}
	a[i] = aged[T]{age, of}
}

// raise gives the first item a larger number.
func (h ageHeap[T]) raise(age uint64) {
	h.down(aged[T]{age, h[0].of})
}

// pop takes the first item out.
func (h *ageHeap[T]) pop() {
	a := *h
	last := len(a) - 1
	it := a[last]
	a[last] = aged[T]{}
	*h = a[:last]
	if last > 0 {
		h.down(it)
	}
}

// down puts an item in the place of the first one.
func (h ageHeap[T]) down(it aged[T]) {
	i := 0
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if r := child + 1; r < len(h) && h[r].age < h[child].age {
			child = r
		}
		if it.age <= h[child].age {
			break
		}
		h[i] = h[child]
		i = child
	}
	h[i] = it
}
