//! A small eBPF assembler with forward labels.
//!
//! Instructions are those of the kernel's `Documentation/bpf/standardization/instruction-set.rst`; only the ones that
//! the programs of this room use are here. Whether a program is sound is the kernel's verifier to say.

/// One 64-bit instruction, laid out as the kernel's `struct bpf_insn` on a little-endian machine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination register in the low nibble, source register in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A register. `R0` holds results, `R1`–`R5` arguments that a call destroys, `R6`–`R9` survive calls, `Fp` is the
/// read-only end of the 512-byte stack.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    Fp,
}

/// How many bytes a load or store moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Width {
    /// Four.
    Word = 0x00,
    /// Two.
    Half = 0x08,
    /// One.
    Byte = 0x10,
    /// Eight.
    Double = 0x18,
}

/// When a jump is taken; comparisons are unsigned and of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum When {
    /// Equal.
    Equal = 0x10,
    /// Greater than.
    Greater = 0x20,
    /// Some bit of the operand is set in the register.
    AnyBit = 0x40,
    /// Not equal.
    Differs = 0x50,
    /// Less than.
    Less = 0xa0,
    /// Less than or equal.
    AtMost = 0xb0,
}

/// A place in a program, made by [`Assembler::label`] and given its position by [`Assembler::bind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// Why a list of instructions is no program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssemblyError {
    /// A jump leads to a label that was never bound.
    #[error("instruction {at} jumps to a label that has no place")]
    Unbound {
        /// Index of the jump.
        at: usize,
    },
    /// A jump is longer than its 16-bit offset.
    #[error("instruction {at} jumps further than 32,767 instructions")]
    TooFar {
        /// Index of the jump.
        at: usize,
    },
}

/// Collects instructions; every method appends one and returns the assembler, so that a program reads as a column.
#[derive(Debug, Default)]
pub struct Assembler {
    instructions: Vec<Instruction>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

/// Operand is a register rather than the immediate.
const FROM_REGISTER: u8 = 0x08;

impl Assembler {
    /// A label that is not bound yet.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts `label` here.
    pub fn bind(&mut self, label: Label) -> &mut Self {
        self.labels[label.0] = Some(self.instructions.len());
        self
    }

    /// `to = from`
    pub fn copy(&mut self, to: Register, from: Register) -> &mut Self {
        self.push(0xb7 | FROM_REGISTER, to as u8, from as u8, 0, 0)
    }

    /// `to = value`
    pub fn set(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(0xb7, to as u8, 0, 0, value)
    }

    /// `to += from`
    pub fn add(&mut self, to: Register, from: Register) -> &mut Self {
        self.push(0x07 | FROM_REGISTER, to as u8, from as u8, 0, 0)
    }

    /// `to += value`
    pub fn add_value(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(0x07, to as u8, 0, 0, value)
    }

    /// `to &= value`
    pub fn and_value(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(0x57, to as u8, 0, 0, value)
    }

    /// `to <<= bits`
    pub fn shift_left(&mut self, to: Register, bits: i32) -> &mut Self {
        self.push(0x67, to as u8, 0, 0, bits)
    }

    /// `to >>= bits`, filled with zeroes.
    pub fn shift_right(&mut self, to: Register, bits: i32) -> &mut Self {
        self.push(0x77, to as u8, 0, 0, bits)
    }

    /// `to >>= bits`, of which the low six count; filled with zeroes.
    pub fn shift_right_by(&mut self, to: Register, bits: Register) -> &mut Self {
        self.push(0x77 | FROM_REGISTER, to as u8, bits as u8, 0, 0)
    }

    /// `to` = its low two bytes, from network order to the machine's.
    pub fn from_network16(&mut self, to: Register) -> &mut Self {
        const END_TO_BIG: u8 = 0xdc;
        self.push(END_TO_BIG, to as u8, 0, 0, 16)
    }

    /// `to = *(base + offset)`, zero-extended, in the machine's byte order.
    pub fn load(&mut self, width: Width, to: Register, base: Register, offset: i16) -> &mut Self {
        self.push(0x61 | width as u8, to as u8, base as u8, offset, 0)
    }

    /// `*(base + offset) = from`
    pub fn store(&mut self, width: Width, base: Register, offset: i16, from: Register) -> &mut Self {
        self.push(0x63 | width as u8, base as u8, from as u8, offset, 0)
    }

    /// `*(base + offset) = value`
    pub fn store_value(&mut self, width: Width, base: Register, offset: i16, value: i32) -> &mut Self {
        self.push(0x62 | width as u8, base as u8, 0, offset, value)
    }

    /// `to` = the map behind the file descriptor `fd`. Takes two slots; the verifier makes a pointer of it.
    pub fn load_map(&mut self, to: Register, fd: i32) -> &mut Self {
        const PSEUDO_MAP_FD: u8 = 1;
        self.push(0x18, to as u8, PSEUDO_MAP_FD, 0, fd).push(0, 0, 0, 0, 0)
    }

    /// Goes to `label` when `register` compares so with `value`.
    pub fn jump_if(&mut self, when: When, register: Register, value: i32, label: Label) -> &mut Self {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x05 | when as u8, register as u8, 0, 0, value)
    }

    /// Goes to `label` when `left` compares so with `right`.
    pub fn jump_if_register(
        &mut self,
        when: When,
        left: Register,
        right: Register,
        label: Label,
    ) -> &mut Self {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x05 | FROM_REGISTER | when as u8, left as u8, right as u8, 0, 0)
    }

    /// Goes to `label`.
    pub fn jump(&mut self, label: Label) -> &mut Self {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x05, 0, 0, 0, 0)
    }

    /// Calls the kernel's helper of this number (`enum bpf_func_id`).
    pub fn call(&mut self, helper: i32) -> &mut Self {
        self.push(0x85, 0, 0, 0, helper)
    }

    /// Ends the program with `R0`.
    pub fn exit(&mut self) -> &mut Self {
        self.push(0x95, 0, 0, 0, 0)
    }

    /// The program, with every jump resolved.
    pub fn finish(mut self) -> Result<Vec<Instruction>, AssemblyError> {
        for (at, label) in self.jumps {
            let target = self.labels[label.0].ok_or(AssemblyError::Unbound { at })?;
            let distance = target.cast_signed() - at.cast_signed() - 1;
            self.instructions[at].offset =
                i16::try_from(distance).map_err(|_| AssemblyError::TooFar { at })?;
        }
        Ok(self.instructions)
    }

    fn push(&mut self, code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> &mut Self {
        let registers = destination | source << 4;
        self.instructions.push(Instruction { code, registers, offset, immediate });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::Register::{Fp, R0, R1, R2};
    use super::*;

    /// The parts of an instruction.
    type Parts = (u8, u8, i16, i32);

    fn bytes(assembler: Assembler) -> Vec<Parts> {
        let program = assembler.finish().unwrap();
        program.iter().map(|i| (i.code, i.registers, i.offset, i.immediate)).collect()
    }

    #[test]
    fn encodes_as_the_instruction_set_says() {
        type Build = fn(&mut Assembler);
        let table: &[(&str, Build, Parts)] = &[
            ("r0 = 2", |a| _ = a.set(R0, 2), (0xb7, 0x00, 0, 2)),
            ("r1 = r2", |a| _ = a.copy(R1, R2), (0xbf, 0x21, 0, 0)),
            ("r1 += r2", |a| _ = a.add(R1, R2), (0x0f, 0x21, 0, 0)),
            ("r2 += -8", |a| _ = a.add_value(R2, -8), (0x07, 0x02, 0, -8)),
            ("r2 &= 15", |a| _ = a.and_value(R2, 15), (0x57, 0x02, 0, 15)),
            ("r2 <<= 2", |a| _ = a.shift_left(R2, 2), (0x67, 0x02, 0, 2)),
            ("r2 >>= 6", |a| _ = a.shift_right(R2, 6), (0x77, 0x02, 0, 6)),
            ("r1 >>= r2", |a| _ = a.shift_right_by(R1, R2), (0x7f, 0x21, 0, 0)),
            ("r2 = be16 r2", |a| _ = a.from_network16(R2), (0xdc, 0x02, 0, 16)),
            ("r1 = *(u32 *)(r2 + 4)", |a| _ = a.load(Width::Word, R1, R2, 4), (0x61, 0x21, 4, 0)),
            ("r1 = *(u8 *)(r2 + 4)", |a| _ = a.load(Width::Byte, R1, R2, 4), (0x71, 0x21, 4, 0)),
            ("*(u16 *)(fp - 4) = r2", |a| _ = a.store(Width::Half, Fp, -4, R2), (0x6b, 0x2a, -4, 0)),
            ("*(u64 *)(fp - 8) = 1", |a| _ = a.store_value(Width::Double, Fp, -8, 1), (0x7a, 0x0a, -8, 1)),
            ("call 1", |a| _ = a.call(1), (0x85, 0, 0, 1)),
            ("exit", |a| _ = a.exit(), (0x95, 0, 0, 0)),
        ];
        for (what, build, expected) in table {
            let mut assembler = Assembler::default();
            build(&mut assembler);
            assert_eq!(bytes(assembler), [*expected], "{what}");
        }
    }

    #[test]
    fn jumps_count_from_the_next_instruction() {
        let mut a = Assembler::default();
        let (start, end) = (a.label(), a.label());
        a.bind(start).jump_if(When::Equal, R1, 7, end).load_map(R1, 5);
        a.jump_if_register(When::Greater, R1, R2, start).jump(end).bind(end).exit();
        assert_eq!(
            bytes(a),
            [
                (0x15, 0x01, 4, 7),
                (0x18, 0x11, 0, 5),
                (0, 0, 0, 0),
                (0x2d, 0x21, -4, 0),
                (0x05, 0, 0, 0),
                (0x95, 0, 0, 0)
            ]
        );
    }

    #[test]
    fn a_jump_that_cannot_be_is_an_error() {
        let mut a = Assembler::default();
        let nowhere = a.label();
        a.exit().jump(nowhere);
        assert_eq!(a.finish(), Err(AssemblyError::Unbound { at: 1 }));

        let mut a = Assembler::default();
        let far = a.label();
        a.jump(far);
        for _ in 0..=i16::MAX.cast_unsigned() {
            a.set(R0, 0);
        }
        a.bind(far).exit();
        assert_eq!(a.finish(), Err(AssemblyError::TooFar { at: 0 }));
    }
}
