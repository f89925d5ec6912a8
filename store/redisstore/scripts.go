package redisstore

import (
	"crypto/sha1" //nolint:gosec // Redis names scripts by SHA-1.
	"embed"
	"encoding/hex"
)

//go:embed scripts/*.lua
var scriptFiles embed.FS

// script is one of the fixed scripts: lib.lua and its own text, with the names of keys.go.
// Values are arguments, never text, so that the server keeps a dozen scripts and no more.
type script struct {
	name, source, hash string
}

// The scripts, one for each kind of change; the head of each file says what it does.
var (
	scriptSetup      = loadScript("setup")
	scriptSubmit     = loadScript("submit")
	scriptRequest    = loadScript("request")
	scriptClaim      = loadScript("claim")
	scriptRenew      = loadScript("renew")
	scriptMove       = loadScript("move")
	scriptDue        = loadScript("due")
	scriptForget     = loadScript("forget")
	scriptRecover    = loadScript("recover")
	scriptAttend     = loadScript("attend")
	scriptFunction   = loadScript("function")
	scriptUnregister = loadScript("unregister")
	scriptIndex      = loadScript("index")
	scriptRecount    = loadScript("recount")
	scriptRefers     = loadScript("refers")
	scriptAnnounce   = loadScript("announce")
)

func loadScript(name string) *script {
	source := withNames(readScript("lib") + readScript(name))
	sum := sha1.Sum([]byte(source)) //nolint:gosec // As above.
	return &script{name: name, source: source, hash: hex.EncodeToString(sum[:])}
}

func readScript(name string) string {
	b, err := scriptFiles.ReadFile("scripts/" + name + ".lua")
	if err != nil {
		panic(err) // The file is part of the binary.
	}
	return string(b)
}

// maxItems bounds the tasks that one call of a script looks at: a script holds up
// everybody else on the server.
const maxItems = 128
