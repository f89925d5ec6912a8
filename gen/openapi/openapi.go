// Package openapi holds the OpenAPI 2.0 description of the REST API, generated from
// the same contract and routes as the gateway.
package openapi

import _ "embed"

// JSON is the description, a JSON document. Callers must not change it.
//
//go:embed treadle.swagger.json
var JSON []byte
