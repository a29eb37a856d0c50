package rawjson

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestMembersAreFoundAsEncodingJSONFindsThem(t *testing.T) {
	for _, text := range []string{
		`{}`, ` { } `, `{"a":1}`, "\t{ \"a\" : [ { \"}\" : \"]\" } ] , \"b\\\"\" : \"\\\\\" }\n",
		`{"a":{"b":{"c":[[],{}]}},"d":null,"e":true,"f":-1.5e+3,"":""}`, `{"a":1,"a":2}`, `{"\u0061\n":"\u0022"}`,
	} {
		want, got := map[string]json.RawMessage{}, map[string]json.RawMessage{}
		require.NoError(t, json.Unmarshal([]byte(text), &want))
		require.NoError(t, EachMember([]byte(text), func(name, value []byte) { got[string(name)] = value }))
		require.Equal(t, want, got, text)
	}
}

// FuzzEachMember compares EachMember with encoding/json.
func FuzzEachMember(f *testing.F) {
	for _, text := range []string{
		"", " ", "null", "[]", "{", "{}", " { } ", `{"a":1,"b":[{}]}`, "{\"a\" : 1 ,\n\"b\":2}", `{"a":{"b":[1,"]"],"c":"}"}}`, `{"a\"":"\\","b":"\\\""}`, `{"a":-1.5e+10,"b":true}`, `{"a":1,"a":null}`, "{\"a\":\"\xff\"}",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var want map[string]json.RawMessage
		err := json.Unmarshal(text, &want)
		got := map[string]json.RawMessage{}
		if EachMember(text, func(name, value []byte) { got[string(name)] = value }) != nil {
			require.True(t, err != nil || want == nil || !utf8.Valid(text), "%q", text)
			return
		}
		require.NoError(t, err, "%q", text)
		require.Equal(t, want, got, "%q", text)
	})
}
