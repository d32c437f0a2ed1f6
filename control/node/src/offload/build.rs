//! Well-formed packets for tests.

use super::{
    checksum::Sum,
    header::{TCP, UDP, put_u16},
};

/// A pattern that shows where a byte came from.
pub(super) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ ((i >> 8) * 7)) as u8).collect()
}

/// What IP carries besides.
#[derive(Clone, Debug)]
pub(super) struct Ip {
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) label: u32,
    pub(super) df: bool,
    pub(super) host: u8,
}

impl Default for Ip {
    fn default() -> Self {
        Self {
            tos: 0,
            ttl: 64,
            label: 0,
            df: true,
            host: 1,
        }
    }
}

impl Ip {
    fn header(&self, v6: bool, protocol: u8, id: u16, len: usize) -> Vec<u8> {
        if v6 {
            let mut head = vec![0; 40];
            let word = 6 << 28 | u32::from(self.tos) << 20 | self.label & 0xf_ffff;
            head[..4].copy_from_slice(&word.to_be_bytes());
            put_u16(&mut head, 4, len as u16);
            head[6] = protocol;
            head[7] = self.ttl;
            head[8] = 0xfd;
            head[23] = self.host;
            head[24] = 0xfd;
            head[39] = 2;
            head
        } else {
            let mut head = vec![0; 20];
            head[0] = 0x45;
            head[1] = self.tos;
            put_u16(&mut head, 2, (20 + len) as u16);
            put_u16(&mut head, 4, id);
            head[6] = if self.df { 0x40 } else { 0 };
            head[8] = self.ttl;
            head[9] = protocol;
            head[12..20].copy_from_slice(&[10, 0, 0, self.host, 10, 0, 0, 200]);
            let sum = Sum::default().bytes(&head).checksum();
            put_u16(&mut head, 10, sum);
            head
        }
    }

    fn finish(&self, v6: bool, protocol: u8, id: u16, mut transport: Vec<u8>) -> Vec<u8> {
        let mut packet = self.header(v6, protocol, id, transport.len());
        let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
        let field = if protocol == TCP { 16 } else { 6 };
        let mut sum = Sum::pseudo(addresses, protocol, transport.len())
            .bytes(&transport)
            .checksum();
        if sum == 0 && protocol == UDP {
            sum = 0xffff;
        }
        put_u16(&mut transport, field, sum);
        packet.extend(transport);
        packet
    }
}

#[derive(Clone, Debug)]
pub(super) struct Tcp {
    pub(super) v6: bool,
    pub(super) ip: Ip,
    pub(super) id: u16,
    pub(super) port: u16,
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) urgent: u16,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            v6: false,
            ip: Ip::default(),
            id: 7,
            port: 5000,
            sequence: 1,
            acknowledged: 9,
            flags: 0x10,
            window: 500,
            urgent: 0,
            options: vec![],
            payload: vec![],
        }
    }
}

impl Tcp {
    pub(super) fn packet(&self) -> Vec<u8> {
        let mut transport = vec![0; 20];
        put_u16(&mut transport, 0, self.port);
        put_u16(&mut transport, 2, 80);
        transport[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        transport[8..12].copy_from_slice(&self.acknowledged.to_be_bytes());
        transport[12] = (((20 + self.options.len()) / 4) << 4) as u8;
        transport[13] = self.flags;
        put_u16(&mut transport, 14, self.window);
        put_u16(&mut transport, 18, self.urgent);
        transport.extend(&self.options);
        transport.extend(&self.payload);
        self.ip.finish(self.v6, TCP, self.id, transport)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Udp {
    pub(super) v6: bool,
    pub(super) ip: Ip,
    pub(super) id: u16,
    pub(super) port: u16,
    pub(super) payload: Vec<u8>,
}

impl Default for Udp {
    fn default() -> Self {
        Self {
            v6: false,
            ip: Ip::default(),
            id: 7,
            port: 5000,
            payload: vec![],
        }
    }
}

impl Udp {
    pub(super) fn packet(&self) -> Vec<u8> {
        let mut transport = vec![0; 8];
        put_u16(&mut transport, 0, self.port);
        put_u16(&mut transport, 2, 53);
        put_u16(&mut transport, 4, 8 + self.payload.len() as u16);
        transport.extend(&self.payload);
        self.ip.finish(self.v6, UDP, self.id, transport)
    }
}
