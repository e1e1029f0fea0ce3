/** The step from which an event file tells TensorBoard to forget what earlier ones say; null where it does not. */
export function forgetsFrom(file: Buffer): number | null {
  for (let at = 0; at < file.length; ) {
    const length = Number(file.readBigUInt64LE(at));
    const data = file.subarray(at + 12, at + 12 + length);
    // Wall time (field 1, a double), step (field 2, here one byte), session log (field 7) with status (field 1) START (1).
    if (data[9] === 0x10 && data.subarray(11).equals(Buffer.from([0x3a, 2, 8, 1]))) return data[10];
    at += 16 + length;
  }
  return null;
}
