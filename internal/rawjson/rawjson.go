// Package rawjson walks JSON objects as they are written, without copies, and names what is wrong
// with their fields.
//
// CheckObject and EachMember take any bytes. The functions that say so take only JSON that one of
// them has checked. Faults collect what is wrong, field by field, for one error.
//
// The package has no state, no locks and no goroutines. Every other package may call it.
package rawjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

var (
	ErrNotUUID   = errors.New("is not a UUID")
	ErrNotJSON   = errors.New("is not valid JSON")
	ErrNotUTF8   = errors.New("is not valid UTF-8")
	ErrNotObject = errors.New("is not a JSON object")
)

// MaxNesting is how deep encoding/json lets values nest.
const MaxNesting = 10_000

// CheckObject reports what keeps data from being one JSON object in valid UTF-8.
func CheckObject(data []byte) error {
	switch {
	case !utf8.Valid(data):
		return ErrNotUTF8
	case !json.Valid(data):
		return ErrNotJSON
	case data[skipSpace(data, 0)] != '{':
		return ErrNotObject
	}
	return nil
}

// EachMember calls visit for the members of a JSON object, in order. It visits a repeated name
// again. Unlike encoding/json, it does not ignore the case of names. Names and values share memory
// with the object, except names with escapes. The error is that of CheckObject.
func EachMember(object []byte, visit func(name, value []byte)) error {
	if err := CheckObject(object); err != nil {
		return err
	}
	i := skipSpace(object, skipSpace(object, 0)+1)
	for object[i] != '}' {
		end := valueEnd(object, i)
		name := Unquote(object[i:end])
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

// valueEnd gives where the value that begins at i ends. b is valid JSON.
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

// Unquote gives the text of a JSON string literal. Without escapes, the text shares memory with it.
// The literal was checked.
func Unquote(literal []byte) []byte {
	if bytes.IndexByte(literal, '\\') < 0 {
		return literal[1 : len(literal)-1]
	}
	var s string
	_ = json.Unmarshal(literal, &s) // it is valid
	return []byte(s)
}

// OneLine gives JSON without line breaks, because a field of an event stream ends at one. The value
// was checked.
func OneLine(value []byte) []byte {
	if bytes.IndexByte(value, '\n') < 0 && bytes.IndexByte(value, '\r') < 0 {
		return value
	}
	var b bytes.Buffer
	_ = json.Compact(&b, value) // it is valid
	return b.Bytes()
}

// AppendString appends s as a JSON string. s must be valid UTF-8.
func AppendString(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == '"' || s[i] == '\\' || s[i] >= utf8.RuneSelf {
			text, _ := Marshal(s) // a string can always be written
			return append(b, text...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// Marshal is json.Marshal without the escapes for HTML: the Python services write none, and the
// bytes count against the limit of an event.
func Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// A Fault is what is wrong with one field.
type Fault struct {
	Field   string // the field's path
	Problem string // the rest of a sentence that begins with Field
}

// Faults are what is wrong with an object.
type Faults []Fault

// Add adds the fault of a field.
func (f *Faults) Add(field, format string, args ...any) {
	*f = append(*f, Fault{field, fmt.Sprintf(format, args...)})
}

// Err gives the faults as an error, nil where there are none.
func (f Faults) Err() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// Error lists all faults.
func (f Faults) Error() string {
	var b strings.Builder
	for i, fault := range f {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(fault.Field + " " + fault.Problem)
	}
	return b.String()
}

// Excerpt quotes a value from outside for an error message, cut short.
func Excerpt(s string) string {
	const most = 48
	if len(s) > most {
		return fmt.Sprintf("%.*q…", most, s)
	}
	return fmt.Sprintf("%q", s)
}
