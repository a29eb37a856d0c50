package eventbus

import (
	"bytes"
	"encoding/json"
	"errors"
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
func checkObject(data []byte) error {
	switch {
	case !utf8.Valid(data):
		return errNotUTF8
	case !validJSON(data):
		return errNotJSON
	}
	if d := bytes.TrimLeft(data, " \t\r\n"); len(d) == 0 || d[0] != '{' {
		return errNotObject
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
		return checkNested(b, i, depth-1)
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

// checkNested checks an object or array.
func checkNested(b []byte, i, depth int) int {
	object := b[i] == '{'
	last := b[i] + 2 // the closing bracket
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == last {
		return i + 1
	}
	for {
		if object {
			if i >= len(b) || b[i] != '"' {
				return -1
			}
			if i = checkText(b, i+1); i < 0 {
				return -1
			}
			if i = skipSpace(b, i); i >= len(b) || b[i] != ':' {
				return -1
			}
			i = skipSpace(b, i+1)
		}
		if i = checkJSON(b, i, depth); i < 0 {
			return -1
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
	for ; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c < ' ':
			return -1
		case c != '\\':
		case i+1 < len(b) && bytes.IndexByte([]byte(`"\/bfnrt`), b[i+1]) >= 0:
			i++
		case i+5 < len(b) && b[i+1] == 'u' && isHex(b[i+2:i+6]):
			i += 5
		default:
			return -1
		}
	}
	return -1
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

// eachMember calls visit for the members of a JSON object that checkObject has
// passed, in order; a repeated name is visited again. Unlike encoding/json it
// takes names as they are written, not regardless of case, and copies nothing: names
// and values are part of the object, but for names with escapes.
func eachMember(object []byte, visit func(name, value []byte)) {
	i := skipSpace(object, 0) + 1 // behind the brace
	for {
		i = skipSpace(object, i)
		switch object[i] {
		case '}':
			return
		case ',':
			i = skipSpace(object, i+1)
		}
		end := skipString(object, i)
		name := unquote(object[i:end])
		i = skipSpace(object, end) + 1 // behind the colon
		i = skipSpace(object, i)
		end = skipValue(object, i)
		visit(name, object[i:end:end])
		i = end
	}
}

func skipString(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}

func skipValue(b []byte, i int) int {
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		for depth := 0; ; i++ {
			switch b[i] {
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			case '"':
				i = skipString(b, i) - 1
			}
		}
	}
	for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' && b[i] > ' ' {
		i++
	}
	return i
}

// unquote gives the text of a JSON string literal, as part of it where it has no escapes.
func unquote(literal []byte) []byte {
	if bytes.IndexByte(literal, '\\') < 0 {
		return literal[1 : len(literal)-1]
	}
	var s string
	_ = json.Unmarshal(literal, &s) // valid: checkObject has passed it
	return []byte(s)
}

// oneLine returns JSON without line breaks: an SSE frame ends at one.
func oneLine(value []byte) []byte {
	if bytes.IndexByte(value, '\n') < 0 && bytes.IndexByte(value, '\r') < 0 {
		return value
	}
	var b bytes.Buffer
	_ = json.Compact(&b, value) // valid: checkObject has passed it
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
