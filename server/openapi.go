package server

import (
	"bytes"
	"encoding/json"
)

// describe writes the version of the server into the description of its API.
func describe(generated []byte, version string) []byte {
	said, err := json.Marshal(version)
	if err != nil {
		panic(err) // strings always have a form
	}
	return bytes.Replace(generated, []byte(`"version": "VERSION"`), append([]byte(`"version": `), said...), 1)
}
