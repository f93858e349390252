//! TensorBoard's event files: scalars by tag and step.
//!
//! A file is a row of records: length (u64), its checksum, the bytes, their checksum. The bytes are a protocol buffer
//! `Event` (<https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/event.proto>), of which three
//! fields and one summary value are needed here.

/// A record that begins a file.
pub fn header(wall_time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    bytes(&mut event, 3, b"brain.Event:2");
    record(&event)
}

/// A record of scalars at a step.
pub fn scalars(wall_time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut entry = Vec::new();
        bytes(&mut entry, 1, tag.as_bytes());
        key(&mut entry, 2, 5);
        entry.extend((*value as f32).to_le_bytes());
        bytes(&mut summary, 1, &entry);
    }
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    key(&mut event, 2, 0);
    varint(&mut event, step);
    bytes(&mut event, 5, &summary);
    record(&event)
}

/// The length of the whole records at the beginning of a file.
pub fn whole_records(file: &[u8]) -> usize {
    let mut rest = file;
    loop {
        let whole = rest.split_first_chunk::<8>().and_then(|(length, body)| {
            let event = usize::try_from(u64::from_le_bytes(*length)).ok()?;
            let (sum, body) = body.split_first_chunk::<4>()?;
            let (event, body) = body.split_at_checked(event)?;
            let (event_sum, body) = body.split_first_chunk::<4>()?;
            let sums = [masked_crc(length), masked_crc(event)];
            (sums == [sum, event_sum].map(|sum| u32::from_le_bytes(*sum))).then_some(body)
        });
        match whole {
            Some(after) => rest = after,
            None => return file.len() - rest.len(),
        }
    }
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(event.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(event);
    record.extend(masked_crc(event).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted as TensorFlow's record format wants it.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn records_are_those_of_tensorboard_s_own_writer() {
        // RecordWriter of TensorBoard 2.21: Event(wall_time=1.5, step=300, summary=Summary(value=[Summary.Value(
        // tag="loss", simple_value=0.25)])).
        let expected = "1b000000000000001a0d9e1309000000000000f83f10ac022a0d0a0b0a046c6f7373150000803e9908deed";
        let record = HEXLOWER.encode(&scalars(1.5, 300, &[("loss", 0.25)]));
        assert_eq!(record, expected);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
