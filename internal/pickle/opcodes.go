package pickle

// operand says what follows an opcode in the stream.
type operand uint8

const (
	operandNone     operand = iota
	operand1                // one byte
	operand2                // two bytes
	operand4                // four bytes
	operand8                // eight bytes
	operandLine             // text up to a newline
	operandTwoLines         // the same, twice
	operandBytes1           // a length in one byte, then that many bytes
	operandBytes4           // a length in four bytes, little endian
	operandBytes8           // a length in eight bytes, little endian
)

// effect says what an opcode does to the unpickler's stack, as far as the walk
// follows it.
type effect uint8

const (
	effectUnknown  effect = iota // not an opcode
	effectNone                   // leaves the stack as it is
	effectPush                   // pushes one object
	effectReplace1               // replaces one object by one
	effectReplace2               // replaces two objects by one
	effectReplace3               // replaces three objects by one
	effectMark                   // opens a mark
	effectPop                    // drops an object or a mark
	effectPopMark                // drops everything down to the mark
	effectCollect                // replaces everything down to the mark by one object
	effectClass                  // OBJ: the same, but a class stands above the mark
	effectExtend                 // adds everything down to the mark to the object below it
	effectExtend2                // the same in pairs
	effectDup                    // pushes the top object again
	effectPut                    // writes the top object to the memo
	effectGet                    // pushes an object from the memo
	effectStop                   // ends the pickle
	effectProto                  // names the protocol
	effectFrame                  // announces a frame
)

type opcode struct {
	arg  operand
	does effect
}

// opcodes is the whole instruction set of pickle protocols 0 to 5, as listed in
// Python's pickletools.
var opcodes = [256]opcode{
	'(':  {operandNone, effectMark},
	'.':  {operandNone, effectStop},
	'0':  {operandNone, effectPop},
	'1':  {operandNone, effectPopMark},
	'2':  {operandNone, effectDup},
	'F':  {operandLine, effectPush},
	'I':  {operandLine, effectPush},
	'J':  {operand4, effectPush},
	'K':  {operand1, effectPush},
	'L':  {operandLine, effectPush},
	'M':  {operand2, effectPush},
	'N':  {operandNone, effectPush},
	'P':  {operandLine, effectPush},
	'Q':  {operandNone, effectReplace1},
	'R':  {operandNone, effectReplace2},
	'S':  {operandLine, effectPush},
	'T':  {operandBytes4, effectPush},
	'U':  {operandBytes1, effectPush},
	'V':  {operandLine, effectPush},
	'X':  {operandBytes4, effectPush},
	'a':  {operandNone, effectReplace2},
	'b':  {operandNone, effectReplace2},
	'c':  {operandTwoLines, effectPush},
	'd':  {operandNone, effectCollect},
	'}':  {operandNone, effectPush},
	'e':  {operandNone, effectExtend},
	'g':  {operandLine, effectGet},
	'h':  {operand1, effectGet},
	'i':  {operandTwoLines, effectCollect},
	'j':  {operand4, effectGet},
	'l':  {operandNone, effectCollect},
	']':  {operandNone, effectPush},
	'o':  {operandNone, effectClass},
	'p':  {operandLine, effectPut},
	'q':  {operand1, effectPut},
	'r':  {operand4, effectPut},
	's':  {operandNone, effectReplace3},
	't':  {operandNone, effectCollect},
	')':  {operandNone, effectPush},
	'u':  {operandNone, effectExtend2},
	'G':  {operand8, effectPush},
	0x80: {operand1, effectProto},
	0x81: {operandNone, effectReplace2}, // NEWOBJ
	0x82: {operand1, effectPush},        // EXT1
	0x83: {operand2, effectPush},        // EXT2
	0x84: {operand4, effectPush},        // EXT4
	0x85: {operandNone, effectReplace1}, // TUPLE1
	0x86: {operandNone, effectReplace2}, // TUPLE2
	0x87: {operandNone, effectReplace3}, // TUPLE3
	0x88: {operandNone, effectPush},     // NEWTRUE
	0x89: {operandNone, effectPush},     // NEWFALSE
	0x8a: {operandBytes1, effectPush},   // LONG1
	0x8b: {operandBytes4, effectPush},   // LONG4
	'B':  {operandBytes4, effectPush},   // BINBYTES
	'C':  {operandBytes1, effectPush},   // SHORT_BINBYTES
	0x8c: {operandBytes1, effectPush},   // SHORT_BINUNICODE
	0x8d: {operandBytes8, effectPush},   // BINUNICODE8
	0x8e: {operandBytes8, effectPush},   // BINBYTES8
	0x8f: {operandNone, effectPush},     // EMPTY_SET
	0x90: {operandNone, effectExtend},   // ADDITEMS
	0x91: {operandNone, effectCollect},  // FROZENSET
	0x92: {operandNone, effectReplace3}, // NEWOBJ_EX
	0x93: {operandNone, effectReplace2}, // STACK_GLOBAL
	0x94: {operandNone, effectPut},      // MEMOIZE
	0x95: {operand8, effectFrame},       // FRAME
	0x96: {operandBytes8, effectPush},   // BYTEARRAY8
	0x97: {operandNone, effectPush},     // NEXT_BUFFER
	0x98: {operandNone, effectReplace1}, // READONLY_BUFFER
}
