//! The system identifier of a cluster, and with it its date of birth.
//!
//! Test servers are copies of one template, so they would all have been born when the template was. Each copy is given
//! an identifier of its own, as initdb would have made it: the upper 32 bits are the time, the lower ones anything. It
//! stands in `global/pg_control` (first, with a checksum at the end) and in the header of each WAL segment.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the identifier stands in the long header at the start of a WAL segment.
const IN_WAL: usize = 24;

/// The file's own size is fixed; the data and its checksum are within one sector by the server's own rule.
const SECTOR: usize = 512;

/// Makes the stopped cluster in `data` one that initdb made `age` ago.
pub fn renew(data: &Path, age: Duration) {
    let born = SystemTime::now() - age;
    let born = born.duration_since(UNIX_EPOCH).expect("a time after 1970");
    let identifier = (born.as_secs() << 32)
        | (u64::from(born.subsec_micros()) << 12)
        | u64::from(std::process::id() & 0xfff);

    let path = data.join("global/pg_control");
    let mut control = fs::read(&path).expect("read pg_control");
    let checksum_at = (64..SECTOR)
        .step_by(4)
        .find(|&at| control[at..at + 4] == crc32c(&control[..at]).to_ne_bytes())
        .expect("the checksum of pg_control");
    let old = control[..8].to_vec();
    control[..8].copy_from_slice(&identifier.to_ne_bytes());
    let checksum = crc32c(&control[..checksum_at]);
    control[checksum_at..checksum_at + 4].copy_from_slice(&checksum.to_ne_bytes());
    fs::write(&path, control).expect("write pg_control");

    for entry in fs::read_dir(data.join("pg_wal")).expect("pg_wal") {
        let path = entry.expect("an entry of pg_wal").path();
        if path.is_file() {
            let mut segment = fs::read(&path).expect("read a WAL segment");
            // A recycled segment has no header yet.
            if segment[IN_WAL..IN_WAL + 8] == old[..] {
                segment[IN_WAL..IN_WAL + 8].copy_from_slice(&identifier.to_ne_bytes());
                fs::write(&path, segment).expect("write a WAL segment");
            }
        }
    }
}

/// The checksum of pg_control: CRC-32C, bit by bit.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}
