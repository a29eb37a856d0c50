package redislog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"
	"github.com/syndarix/eventbus/internal/position"
)

// A Request asks for a page of one log.
type Request struct {
	Channel string
	From    position.Position // first position that is read; zero: from the oldest entry
	Count   int               // most entries; 0: only the state of the log
	Peek    bool              // begin no log: where there is none, the page is zero
}

// pageBytes is how many bytes of events end a page. The first event does not count.
const pageBytes = 256 << 10

// script gives the keys and arguments for read.lua.
func (l *Log) script(r Request) (keys []string, args []any) {
	from := "-"
	if r.From.Epoch > 0 {
		from = string(r.From.Append(nil))
	}
	name := l.Name(r.Channel)
	return []string{logKey(name), producersKey(name)},
		[]any{from, r.Count, pageBytes, l.retention(kind(r.Channel)).Age.Milliseconds(), l.least(r.Channel), r.Peek}
}

// Read gives a page of a log. Where there is no log, Read begins one, unless the request is a Peek.
func (l *Log) Read(ctx context.Context, r Request) (*position.Page, error) {
	keys, args := l.script(r)
	reply, err := readScript.run(ctx, l.client, keys, args...)
	return l.page(r, reply, err)
}

// ReadMany reads pages of several logs in one round trip.
func (l *Log) ReadMany(ctx context.Context, requests []Request) ([]*position.Page, []error) {
	pages, errs := make([]*position.Page, len(requests)), make([]error, len(requests))
	cmds := make([]*redis.Cmd, len(requests))
	pipe := l.client.Pipeline()
	for i, r := range requests {
		keys, args := l.script(r)
		cmds[i] = readScript.cmd(ctx, false, keys, args)
		_ = pipe.Process(ctx, cmds[i]) // This only queues.
	}
	_, _ = pipe.Exec(ctx) // Each command has its own error.
	for i, cmd := range cmds {
		if isNoScript(cmd.Err()) {
			// A pipeline cannot repeat a command with EVAL. The first Read does, and loads the
			// script for the others.
			pages[i], errs[i] = l.Read(ctx, requests[i])
		} else {
			pages[i], errs[i] = l.page(requests[i], cmd.Val(), cmd.Err())
		}
	}
	return pages, errs
}

// page makes a page of a reply, and remembers the log's epoch.
func (l *Log) page(r Request, reply any, err error) (*position.Page, error) {
	var p *position.Page
	if err = l.unavailable(err); err == nil {
		p, err = parsePage(r.From, reply)
	}
	if err != nil {
		return nil, fmt.Errorf("read log of %s: %w", r.Channel, err)
	}
	l.saw(r.Channel, p.Last)
	return p, nil
}

var errReadReply = errors.New("unexpected reply to read")

// parsePage reads a reply of read.lua.
func parsePage(asked position.Position, reply any) (*position.Page, error) {
	parts, ok := reply.([]any)
	if !ok || len(parts) < 4 {
		return nil, errReadReply
	}
	p := &position.Page{Asked: asked}
	var err error
	if parts[0] == "" {
		return p, nil // there is no log
	}
	if p.Last, err = parsePositionOf(parts[0]); err != nil {
		return nil, err
	}
	if p.LastID, _ = parts[2].(string); p.LastID != "" {
		p.Last.Fingerprint = position.Fingerprint(p.LastID)
	}
	if parts[1] != "" {
		if p.First, err = parsePositionOf(parts[1]); err != nil {
			return nil, err
		}
	}
	p.Ended = parts[3] == "1"
	for _, part := range parts[4:] {
		list, _ := part.([]any)
		p.Entries = slices.Grow(p.Entries, len(list))
		for _, item := range list {
			e, err := parseEntry(item)
			if err != nil {
				return nil, err
			}
			p.Entries = append(p.Entries, e)
		}
	}
	return p, nil
}

func parsePositionOf(v any) (position.Position, error) {
	s, _ := v.(string)
	return position.Parse(s)
}

// parseEntry reads an entry as XRANGE gives it. An entry without an event is no error here: it is
// skipped where events are decoded.
func parseEntry(item any) (e position.LogEntry, err error) {
	parts, _ := item.([]any)
	if len(parts) != 2 {
		return e, errReadReply
	}
	if e.Pos, err = parsePositionOf(parts[0]); err != nil {
		return e, err
	}
	fields, _ := parts[1].([]any)
	for i := 0; i+1 < len(fields); i += 2 {
		value, _ := fields[i+1].(string)
		switch fields[i] {
		case "event":
			e.Event = []byte(value)
		case "also":
			e.Also = value
		case "final":
			e.Final = true
		}
	}
	if id := eventID(e.Event); id != nil {
		e.Pos.Fingerprint = position.Fingerprint(id)
	}
	return e, nil
}

// eventID gives the id of an event as this bus writes it, nil for one with escapes and for anything
// else. It must find the same as read.lua.
func eventID(event []byte) []byte {
	s, ok := bytes.CutPrefix(event, []byte(`{"id":"`))
	end := bytes.IndexAny(s, `"\`)
	if !ok || end < 0 || s[end] != '"' {
		return nil
	}
	return s[:end]
}
