package main

import (
	"bytes"
	"slices"
)

// A parser reads one HTTP/1.1 response, chunked or not, for the records in its body. It
// looks at as few bytes as it can, so that the load does not hide the server.
type parser struct {
	state   parserState
	chunked bool
	left    int    // of the chunk
	line    []byte // a header line, or a chunk's size, that has begun
	status  int
	until   string // what the stream has begun with; "" for anything but blank lines
	body    bool   // that has come
	end     []byte // of what has come before, while body is false
	carry   [recordLength]byte
	carried int
	headers int
}

type parserState int

const (
	inHeader parserState = iota
	inSize
	inChunk
	inBody // that is not chunked
)

// feed takes what has come, and calls found with each record.
func (p *parser) feed(b []byte, found func([]byte)) {
	for len(b) > 0 {
		switch p.state {
		case inHeader, inSize:
			end := bytes.IndexByte(b, '\n')
			if end < 0 {
				p.line = append(p.line, b...)
				return
			}
			line := bytes.TrimSuffix(append(p.line, b[:end]...), []byte("\r"))
			b = b[end+1:]
			p.take(line)
			p.line = p.line[:0]
		case inChunk:
			n := min(p.left, len(b))
			p.scan(b[:n], found)
			if p.left -= n; p.left == 0 {
				p.state = inSize
			}
			b = b[n:]
		case inBody:
			p.scan(b, found)
			return
		}
	}
}

func (p *parser) take(line []byte) {
	if p.state == inSize {
		if len(line) == 0 {
			return // the end of the chunk before
		}
		for _, c := range line {
			digit := bytes.IndexByte([]byte("0123456789abcdef"), c)
			if digit < 0 {
				break
			}
			p.left = p.left<<4 + digit
		}
		if p.left > 0 {
			p.state = inChunk
		}
		return
	}
	p.headers++
	switch {
	case p.headers == 1 && len(line) > 12:
		p.status = int(digits(line[9:12]))
	case bytes.EqualFold(line, []byte("Transfer-Encoding: chunked")):
		p.chunked = true
	case len(line) == 0 && p.chunked:
		p.state = inSize
	case len(line) == 0:
		p.state = inBody
	}
}

func (p *parser) scan(b []byte, found func([]byte)) {
	p.body = p.body || p.begun(b)
	if p.carried > 0 {
		n := copy(p.carry[p.carried:], b)
		p.carried += n
		b = b[n:]
		if p.carried < recordLength {
			return
		}
		p.carried = 0
		found(p.carry[:])
	}
	for {
		i := bytes.IndexByte(b, '~')
		if i < 0 {
			return
		}
		if b = b[i:]; len(b) < recordLength {
			p.carried = copy(p.carry[:], b)
			return
		}
		found(b[:recordLength])
		b = b[recordLength:]
	}
}

// begun reports whether the stream has begun, with b.
func (p *parser) begun(b []byte) bool {
	if p.until == "" {
		return len(bytes.Trim(b, "\r\n")) > 0
	}
	p.end = append(p.end, b...)
	found := bytes.Contains(p.end, []byte(p.until))
	p.end = slices.Clone(p.end[max(0, len(p.end)-len(p.until)):])
	return found
}
