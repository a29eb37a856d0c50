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

// maxNesting is how deep encoding/json lets values nest.
const maxNesting = 10_000

// checkObject reports what keeps data from being one JSON object in valid UTF-8.
func checkObject(data []byte) error {
	switch {
	case !utf8.Valid(data):
		return errNotUTF8
	case !json.Valid(data):
		return errNotJSON
	case data[skipSpace(data, 0)] != '{':
		return errNotObject
	}
	return nil
}

// eachMember calls visit for the members of a JSON object, in order; a repeated name is
// visited again. Unlike encoding/json it takes names as they are written, not regardless
// of case, and copies nothing: names and values are part of the object, but for names
// with escapes. The error is that of checkObject.
func eachMember(object []byte, visit func(name, value []byte)) error {
	if err := checkObject(object); err != nil {
		return err
	}
	i := skipSpace(object, skipSpace(object, 0)+1)
	for object[i] != '}' {
		end := valueEnd(object, i)
		name := unquote(object[i:end])
		i = skipSpace(object, skipSpace(object, end)+1) // behind the colon
		end = valueEnd(object, i)
		visit(name, object[i:end:end])
		if i = skipSpace(object, end); object[i] == ',' {
			i = skipSpace(object, i+1)
		}
	}
	return nil
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// valueEnd gives where the value that begins at i ends, in valid JSON.
func valueEnd(b []byte, i int) int {
	for depth := 0; ; {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		default:
			for depth == 0 && i+1 < len(b) && bytes.IndexByte([]byte(",}] \n\r\t"), b[i+1]) < 0 {
				i++ // a number, true, false or null
			}
		}
		if i++; depth == 0 {
			return i
		}
	}
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
