// Package deploy holds no code, only tests: they check the files under deploy/ as far as a
// machine without a container engine and without a cluster can. Parsers and types are those
// of the programs that will read the files. What the files start is started for real, each
// container as a process on a loopback address of its own, with its files, its environment
// and its command line.
package deploy
