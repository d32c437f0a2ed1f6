//! SipHash-2-4 with 64 bits of output (Aumasson and Bernstein, 2012), and the two lengths of it that per-hop tags are.

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    #[inline(always)]
    fn new(key: [u64; 2]) -> Self {
        Self {
            v0: key[0] ^ 0x736f_6d65_7073_6575,
            v1: key[1] ^ 0x646f_7261_6e64_6f6d,
            v2: key[0] ^ 0x6c79_6765_6e65_7261,
            v3: key[1] ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    fn absorb(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }

    #[inline(always)]
    fn finish(mut self) -> u64 {
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

/// SipHash-2-4 of 14 bytes under the key with little-endian words `k0`, `k1`: `m0` holds the first eight, the low six
/// bytes of `m1` the others, its two high bytes are not looked at. Its little-endian bytes are the tag on the wire.
#[inline(always)]
pub fn tag_14(k0: u64, k1: u64, m0: u64, m1: u64) -> u64 {
    let mut state = State::new([k0, k1]);
    state.absorb(m0);
    state.absorb(last_word(m1, 14));
    state.finish()
}

/// As [`tag_14`], of 22 bytes: `m0`, `m1`, and the low six of `m2`.
#[inline(always)]
pub fn tag_22(k0: u64, k1: u64, m0: u64, m1: u64, m2: u64) -> u64 {
    let mut state = State::new([k0, k1]);
    state.absorb(m0);
    state.absorb(m1);
    state.absorb(last_word(m2, 22));
    state.finish()
}

/// SipHash's last word: what remains of the message, and the message's length in the highest byte.
#[inline(always)]
const fn last_word(rest: u64, len: u64) -> u64 {
    rest & 0xffff_ffff_ffff | len << 56
}

/// SipHash-2-4 of any bytes under a key of two little-endian words.
pub fn siphash24(key: [u64; 2], bytes: &[u8]) -> u64 {
    let mut state = State::new(key);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let mut le = [0; 8];
        le.copy_from_slice(word);
        state.absorb(u64::from_le_bytes(le));
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(words.remainder()) {
        *to = *from;
    }
    state.absorb(u64::from_le_bytes(last) | (bytes.len() as u64) << 56);
    state.finish()
}

#[cfg(test)]
mod tests {
    use super::{siphash24, tag_14, tag_22};

    /// `vectors_sip64` of the reference implementation: key 00..0f, message 00..n-1 for n in 0..64.
    const VECTORS: [u64; 64] = [
        0x726f_db47_dd0e_0e31,
        0x74f8_39c5_93dc_67fd,
        0x0d6c_8009_d9a9_4f5a,
        0x8567_6696_d7fb_7e2d,
        0xcf27_94e0_2771_87b7,
        0x1876_5564_cd99_a68d,
        0xcbc9_466e_58fe_e3ce,
        0xab02_00f5_8b01_d137,
        0x93f5_f579_9a93_2462,
        0x9e00_82df_0ba9_e4b0,
        0x7a5d_bbc5_94dd_b9f3,
        0xf4b3_2f46_226b_ada7,
        0x751e_8fbc_860e_e5fb,
        0x14ea_5627_c084_3d90,
        0xf723_ca90_8e7a_f2ee,
        0xa129_ca61_49be_45e5,
        0x3f2a_cc7f_57c2_9bdb,
        0x699a_e9f5_2cbe_4794,
        0x4bc1_b3f0_968d_d39c,
        0xbb6d_c91d_a779_61bd,
        0xbed6_5cf2_1aa2_ee98,
        0xd0f2_cbb0_2e3b_67c7,
        0x9353_6795_e3a3_3e88,
        0xa80c_038c_cd5c_cec8,
        0xb8ad_50c6_f649_af94,
        0xbce1_92de_8a85_b8ea,
        0x17d8_35b8_5bbb_15f3,
        0x2f2e_6163_076b_cfad,
        0xde4d_aaac_a71d_c9a5,
        0xa6a2_5066_8795_6571,
        0xad87_a353_5c49_ef28,
        0x32d8_92fa_d841_c342,
        0x7127_512f_72f2_7cce,
        0xa7f3_2346_f959_78e3,
        0x12e0_b01a_bb05_1238,
        0x15e0_34d4_0fa1_97ae,
        0x314d_ffbe_0815_a3b4,
        0x0279_90f0_2962_3981,
        0xcadc_d4e5_9ef4_0c4d,
        0x9abf_d876_6a33_735c,
        0x0e3e_a96b_5304_a7d0,
        0xad0c_42d6_fc58_5992,
        0x1873_06c8_9bc2_15a9,
        0xd4a6_0abc_f379_2b95,
        0xf935_451d_e4f2_1df2,
        0xa953_8f04_1975_5787,
        0xdb9a_cddf_f56c_a510,
        0xd06c_98cd_5c09_75eb,
        0xe612_a3cb_9ecb_a951,
        0xc766_e62c_fcad_af96,
        0xee64_435a_9752_fe72,
        0xa192_d576_b245_165a,
        0x0a87_87bf_8ecb_74b2,
        0x81b3_e73d_20b4_9b6f,
        0x7fa8_220b_a3b2_ecea,
        0x2457_31c1_3ca4_2499,
        0xb78d_bfaf_3a8d_83bd,
        0xea1a_d565_322a_1a0b,
        0x60e6_1c23_a379_5013,
        0x6606_d7e4_4628_2b93,
        0x6ca4_ecb1_5c5f_91e1,
        0x9f62_6da1_5c96_25f3,
        0xe51b_3860_8ef2_5f57,
        0x958a_324c_eb06_4572,
    ];

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    #[test]
    fn reference_vectors() {
        let message: [u8; 64] = core::array::from_fn(|i| i as u8);
        for (n, expected) in VECTORS.iter().enumerate() {
            assert_eq!(siphash24(KEY, &message[..n]), *expected, "{n} bytes");
        }
    }

    #[test]
    fn tags_are_siphash_of_14_and_22_bytes() {
        let message: [u8; 24] = core::array::from_fn(|i| i as u8);
        let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| message[at + i]));
        let [k0, k1] = KEY;
        assert_eq!(tag_14(k0, k1, word(0), word(8)), VECTORS[14]);
        assert_eq!(tag_22(k0, k1, word(0), word(8), word(16)), VECTORS[22]);
    }
}
