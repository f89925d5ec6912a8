//go:build unix && !linux

package pyproc

func beAgent(string) {}
