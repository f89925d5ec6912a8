package dispatcher

// chain is a list in which what it holds knows its place: adding and leaving cost the same
// however long it is, and allocate nothing.
type chain[T any] struct {
	first, last *place[T]
	n           int
}

// place is where a thing stands in a chain, in one at most. It is a field of the thing; of must be set
// before the first use.
type place[T any] struct {
	of         T
	in         *chain[T]
	prev, next *place[T]
}

// add puts a thing that is in no chain at the end.
func (c *chain[T]) add(p *place[T]) {
	p.in, p.prev = c, c.last
	if c.last == nil {
		c.first = p
	} else {
		c.last.next = p
	}
	c.last = p
	c.n++
}

// leave takes a thing out of the chain that it is in, if any.
func (p *place[T]) leave() {
	c := p.in
	if c == nil {
		return
	}
	if p.prev == nil {
		c.first = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		c.last = p.prev
	} else {
		p.next.prev = p.prev
	}
	p.in, p.prev, p.next = nil, nil, nil
	c.n--
}
