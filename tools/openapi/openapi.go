// Package openapi pins what makes a Go client of the OpenAPI description, and what that
// client needs.
package openapi

import _ "github.com/oapi-codegen/runtime"
