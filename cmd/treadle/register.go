package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	treadle "github.com/treadle-dev/treadle/clients/go"
)

func newRegisterCommand() *cobra.Command {
	var name, queue, requestID, python string
	var pickle, transient bool
	cmd := &cobra.Command{
		Use:   "register FILE.py:NAME",
		Short: "Register a Python function and print its id",
		Long: `Registers the function NAME that FILE.py defines. The command sends the text of the whole
file, so this machine needs no Python. A worker runs the file once and then calls NAME.
Modules that the file imports must be installed where the workers run.

With --pickle, FILE holds a pickled callable instead (by dill, cloudpickle or pickle). Code
that is pickled by value runs only on the Python version that pickled it: name that version
with --pickled-by, and workers with another version refuse the function instead of crashing.

"-" reads standard input. Every registration gets a new id; a name stands for its newest
registration.`,
		Example: `  treadle register functions.py:double
  treadle register functions.py:double --name double-v2 --queue batch
  treadle register --pickle model.pkl --name predict
  id=$(treadle register functions.py:double)`,
		Args: arguments(1, 1, "one FILE.py:NAME"),
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the function (default NAME)")
	cmd.Flags().StringVar(&queue, "queue", "", `queue of its tasks (default "default")`)
	cmd.Flags().BoolVar(&pickle, "pickle", false, "FILE is a pickled callable")
	cmd.Flags().StringVar(&python, "pickled-by", "", "with --pickle: version of the Python that pickled code by value, for example 3.12")
	cmd.Flags().StringVar(&requestID, "request-id", "", "text of at most 128 bytes that makes the registration idempotent: repeat a command with the same one")
	cmd.Flags().BoolVar(&transient, "transient", false,
		"share one registration among all who register the same; it is deleted when no task has used it for the retention")
	return clientCommand(cmd, "print the registration as one JSON object",
		func(cmd *cobra.Command, c *treadle.Client, o *clientOptions, args []string) error {
			if python != "" && !pickle {
				return misuse("--pickled-by needs --pickle: source text runs on any Python")
			}
			reg, err := registration(cmd.InOrStdin(), plainArgs(args)[0], name, pickle)
			if err != nil {
				return err
			}
			reg.Queue, reg.RequestID, reg.Python, reg.Transient = queue, requestID, python, transient
			fn, err := c.Register(cmd.Context(), reg)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), fn)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), fn.ID)
			return err
		})
}

// identifier is a name that a Python file can define.
var identifier = regexp.MustCompile(`^[\pL_][\pL\pN_]*$`)

// registration reads what the argument names.
func registration(stdin io.Reader, arg, name string, pickle bool) (treadle.Registration, error) {
	var reg treadle.Registration
	if pickle {
		if name == "" {
			return reg, misuse("--pickle needs --name: a pickle does not say what to call it")
		}
		data, err := readFile(stdin, arg)
		reg.Name, reg.Payload = name, data
		return reg, err
	}
	i := strings.LastIndex(arg, ":")
	if i <= 0 || !identifier.MatchString(arg[i+1:]) {
		return reg, misuse("%q: want FILE.py:NAME, for example functions.py:double", arg)
	}
	file, callable := arg[:i], arg[i+1:]
	data, err := readFile(stdin, file)
	if err != nil {
		return reg, err
	}
	reg.Name = callable
	if reg.Source, err = pythonText(data); err != nil {
		return reg, misuse("%s: %w", file, err)
	}
	if !defines(reg.Source, callable) {
		return reg, fmt.Errorf("%s does not define %q", file, callable)
	}
	if name != "" && name != callable {
		reg.Name = name
		reg.Source += alias(name, callable)
	}
	return reg, nil
}

// codingLine is where a Python file says its encoding (PEP 263), in its first two lines.
var codingLine = regexp.MustCompile(`^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)`)

// pythonText reads a file as Python does: UTF-8, or what it says itself. Text travels as
// UTF-8, and a worker pays no heed to the line any more.
func pythonText(data []byte) (string, error) {
	data, err := withoutBOM(data)
	if err != nil || utf8.Valid(data) {
		return string(data), err
	}
	coding := ""
	for i, line := range bytes.SplitN(data, []byte("\n"), 3) {
		if m := codingLine.FindSubmatch(line); m != nil && i < 2 {
			coding = strings.ToLower(string(m[1]))
			break
		}
	}
	switch strings.ReplaceAll(coding, "_", "-") {
	case "latin-1", "latin1", "iso-8859-1", "iso8859-1", "l1":
		text := make([]rune, len(data))
		for i, b := range data {
			text[i] = rune(b)
		}
		return string(text), nil
	}
	number := 1
	for line := range bytes.Lines(data) {
		if !utf8.Valid(line) {
			break
		}
		number++
	}
	if coding != "" {
		return "", fmt.Errorf("line %d is not UTF-8, and of other encodings only Latin-1 is supported (the file declares %.40q): save it as UTF-8", number, coding)
	}
	return "", fmt.Errorf("line %d is not UTF-8, and the file declares no encoding: save it as UTF-8", number)
}

func readFile(stdin io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

// defines reports whether the source may define the name: the word stands in it. What
// Python makes of it only Python knows; this catches the typing error.
func defines(source, name string) bool {
	return regexp.MustCompile(`(^|[^\pL\pN_])` + regexp.QuoteMeta(name) + `([^\pL\pN_]|$)`).MatchString(source)
}

// alias makes the file define the function under its registered name too, which may be
// any text, as workers look it up by that.
func alias(name, callable string) string {
	quoted, _ := json.Marshal(name) // also a Python literal
	return fmt.Sprintf("\n\nglobals()[%s] = %s\n", quoted, callable)
}
