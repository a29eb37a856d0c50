package eventbus

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/bits"
	"unicode/utf8"
)

var (
	errNotUUID   = errors.New("is not a UUID")
	errNotJSON   = errors.New("is not valid JSON")
	errNotUTF8   = errors.New("is not valid UTF-8")
	errNotObject = errors.New("is not a JSON object")
)

// checkObject tells whether data is one JSON object in valid UTF-8, nested no
// deeper than encoding/json allows.
func checkObject(data []byte) error { return eachMember(data, nil) }

// eachMember calls visit for the members of a JSON object, in order; a repeated name is
// visited again. Unlike encoding/json it takes names as they are written, not regardless
// of case, and copies nothing: names and values are part of the object, but for names
// with escapes. The error is that of checkObject; it comes after members that are well.
func eachMember(object []byte, visit func(name, value []byte)) error {
	if !utf8.Valid(object) {
		return errNotUTF8
	}
	i := skipSpace(object, 0)
	if i == len(object) || object[i] != '{' {
		if validJSON(object) {
			return errNotObject
		}
		return errNotJSON
	}
	if end := checkNested(object, i, maxNesting-1, visit); end < 0 || skipSpace(object, end) < len(object) {
		return errNotJSON
	}
	return nil
}

// maxNesting is how deep encoding/json lets values nest.
const maxNesting = 10_000

// validJSON is json.Valid. Every event goes through it in every process that has
// subscribers, and encoding/json takes four times as long.
func validJSON(b []byte) bool {
	end := checkJSON(b, skipSpace(b, 0), maxNesting)
	return end >= 0 && skipSpace(b, end) == len(b)
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// checkJSON gives the end of the value at i, -1 where there is none.
func checkJSON(b []byte, i, depth int) int {
	if i >= len(b) {
		return -1
	}
	switch c := b[i]; {
	case c == '"':
		return checkText(b, i+1)
	case c == '{' || c == '[':
		if depth == 0 {
			return -1
		}
		return checkNested(b, i, depth-1, nil)
	case c == '-' || c >= '0' && c <= '9':
		return checkNumber(b, i)
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(b[i:], []byte(word)) {
			return i + len(word)
		}
	}
	return -1
}

// checkNested checks an object or array. It calls visit, if there is one, for the members
// of an object.
func checkNested(b []byte, i, depth int, visit func(name, value []byte)) int {
	object := b[i] == '{'
	last := b[i] + 2 // the closing bracket
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == last {
		return i + 1
	}
	for {
		var name []byte
		if object {
			if i >= len(b) || b[i] != '"' {
				return -1
			}
			from := i
			if i = checkText(b, i+1); i < 0 {
				return -1
			}
			name = b[from:i]
			if i = skipSpace(b, i); i >= len(b) || b[i] != ':' {
				return -1
			}
			i = skipSpace(b, i+1)
		}
		from := i
		if i = checkJSON(b, i, depth); i < 0 {
			return -1
		}
		if visit != nil {
			visit(unquote(name), b[from:i:i])
		}
		i = skipSpace(b, i)
		switch {
		case i < len(b) && b[i] == last:
			return i + 1
		case i >= len(b) || b[i] != ',':
			return -1
		}
		i = skipSpace(b, i+1)
	}
}

// checkText checks a string behind its first quote.
func checkText(b []byte, i int) int {
	for i < len(b) {
		if len(b)-i >= 8 {
			if n := plain(binary.LittleEndian.Uint64(b[i:])); n > 0 {
				i += n
				continue
			}
		}
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c < ' ':
			return -1
		case c != '\\':
			i++
		case i+1 < len(b) && bytes.IndexByte([]byte(`"\/bfnrt`), b[i+1]) >= 0:
			i += 2
		case i+5 < len(b) && b[i+1] == 'u' && isHex(b[i+2:i+6]):
			i += 6
		default:
			return -1
		}
	}
	return -1
}

// plain tells how many bytes, from the lowest, come before a quote, a backslash or a
// control character. (The trick with the borrow is from Anderson, "Bit Twiddling Hacks",
// "Determine if a word has a byte less than n"; above the first hit it is not exact.)
func plain(word uint64) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	quote, backslash := word^'"'*ones, word^'\\'*ones
	hit := ((word-' '*ones)&^word | (quote-ones)&^quote | (backslash-ones)&^backslash) & tops
	return bits.TrailingZeros64(hit) / 8 // 8 without a hit
}

func isHex(b []byte) bool {
	for _, c := range b {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F') {
			return false
		}
	}
	return true
}

func checkNumber(b []byte, i int) int {
	digits := func() bool {
		from := i
		for i < len(b) && b[i] >= '0' && b[i] <= '9' {
			i++
		}
		return i > from
	}
	if b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if !digits() {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		if i++; !digits() {
			return -1
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return -1
		}
	}
	return i
}

// unquote gives the text of a JSON string literal, as part of it where it has no escapes.
func unquote(literal []byte) []byte {
	if bytes.IndexByte(literal, '\\') < 0 {
		return literal[1 : len(literal)-1]
	}
	var s string
	_ = json.Unmarshal(literal, &s) // valid: it was checked
	return []byte(s)
}

// oneLine returns JSON without line breaks: an SSE frame ends at one.
func oneLine(value []byte) []byte {
	if bytes.IndexByte(value, '\n') < 0 && bytes.IndexByte(value, '\r') < 0 {
		return value
	}
	var b bytes.Buffer
	_ = json.Compact(&b, value) // valid: it was checked
	return b.Bytes()
}

// appendString appends s as a JSON string; s is valid UTF-8.
func appendString(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == '"' || s[i] == '\\' || s[i] >= utf8.RuneSelf {
			text, _ := marshal(s) // a string always can be
			return append(b, text...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// marshal is json.Marshal without the escapes for HTML: the Python services
// write none, and the bytes count against the limit of an event.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
