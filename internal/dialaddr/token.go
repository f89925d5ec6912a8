package dialaddr

import (
	"fmt"
	"strings"
)

// CheckToken refuses a bearer token that no header can carry, without showing any of it. gRPC would
// fail each call with words about a header.
func CheckToken(token string) error {
	if i := strings.IndexFunc(token, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
		return fmt.Errorf("the token has a character at byte %d that no token has: want it as 'treadle token create' printed it", i)
	}
	return nil
}
