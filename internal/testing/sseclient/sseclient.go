// Package sseclient is a strict client of event streams, for tests.
package sseclient

import (
	"bufio"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// A Parser interprets an event stream as HTML says in section 9.2.6 ("Interpreting
// an event stream"), to the letter. It takes the stream in pieces, cut anywhere.
type Parser struct {
	LastEventID string // what the client would send when it comes back
	Retry       int    // reconnection time in ms, -1 while the stream has not set it

	line    []byte // unfinished
	lines   []string
	begun   bool // the place of the byte order mark is behind us
	afterCR bool // a LF that comes next belongs to that CR

	data, typ strings.Builder
	id        string // the last event ID buffer
}

// A Block is what stands between two blank lines.
type Block struct {
	Lines       []string
	Event       *Event // nil where the client fires none
	LastEventID string // what the client remembers behind it
}

// An Event is what a client's listener is given.
type Event struct{ Type, Data, LastEventID string }

// New makes the parser of a client that comes back with this id, "" for a new one.
func New(lastEventID string) *Parser { return &Parser{Retry: -1, id: lastEventID} }

// Parse takes the next piece and gives the blocks that it ends.
func (p *Parser) Parse(piece []byte) (blocks []Block) {
	for _, c := range piece {
		lf := c == '\n' && p.afterCR
		p.afterCR = c == '\r'
		switch {
		case lf: // ended already
		case c == '\n' || c == '\r':
			line := p.takeLine()
			if line == "" {
				blocks = append(blocks, p.dispatch())
				continue
			}
			p.lines = append(p.lines, line)
			p.field(line)
		default:
			p.line = append(p.line, c)
		}
	}
	return blocks
}

// Unfinished gives what the end of the stream discards.
func (p *Parser) Unfinished() string {
	return strings.Join(append(p.lines, string(p.line)), "\n")
}

// takeLine decodes a line. No line break is part of a longer UTF-8 sequence, so this
// is the same as decoding the stream first.
func (p *Parser) takeLine() string {
	line := string(p.line)
	p.line = p.line[:0]
	if !p.begun {
		line = strings.TrimPrefix(line, "\uFEFF")
		p.begun = true
	}
	if utf8.ValidString(line) {
		return line
	}
	return string([]rune(line)) // U+FFFD for what is wrong
}

func (p *Parser) field(line string) {
	name, value, _ := strings.Cut(line, ":")
	value = strings.TrimPrefix(value, " ")
	switch name {
	case "event":
		p.typ.Reset()
		p.typ.WriteString(value)
	case "data":
		p.data.WriteString(value)
		p.data.WriteByte('\n')
	case "id":
		if !strings.Contains(value, "\x00") {
			p.id = value
		}
	case "retry":
		if strings.Trim(value, "0123456789") == "" {
			if n, err := strconv.Atoi(value); err == nil {
				p.Retry = n
			}
		}
	}
}

func (p *Parser) dispatch() Block {
	p.LastEventID = p.id
	block := Block{Lines: p.lines, LastEventID: p.id}
	p.lines = nil
	if p.data.Len() > 0 {
		block.Event = &Event{
			Type:        p.typ.String(),
			Data:        strings.TrimSuffix(p.data.String(), "\n"),
			LastEventID: p.LastEventID,
		}
		if block.Event.Type == "" {
			block.Event.Type = "message"
		}
	}
	p.data.Reset()
	p.typ.Reset()
	return block
}

// Has reports whether the block has a field of this name.
func (b Block) Has(name string) bool {
	for _, line := range b.Lines {
		if field, _, _ := strings.Cut(line, ":"); field == name {
			return true
		}
	}
	return false
}

// Comment reports whether the block is nothing but comments.
func (b Block) Comment() bool {
	for _, line := range b.Lines {
		if line[0] != ':' {
			return false
		}
	}
	return true
}

// Members gives the names of a JSON object, in order, and their values.
func Members(t testing.TB, object string) (names []string, values map[string]json.RawMessage) {
	t.Helper()
	values = map[string]json.RawMessage{}
	d := json.NewDecoder(bufio.NewReader(strings.NewReader(object)))
	_, err := d.Token()
	require.NoError(t, err)
	for d.More() {
		name, err := d.Token()
		require.NoError(t, err)
		var value json.RawMessage
		require.NoError(t, d.Decode(&value))
		names = append(names, name.(string))
		values[name.(string)] = value
	}
	return names, values
}
