import * as fsp from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { ioError } from '../base/files.js';

const crcTable = new Uint32Array(256).map((_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  return crc;
});

/** CRC-32C (Castagnoli, RFC 3720 B.4). */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = crcTable[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** The rotated and offset checksum that event files carry. */
export function maskedCrc32c(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  while (rest >= 128) {
    bytes.push((rest % 128) | 128);
    rest = Math.floor(rest / 128);
  }
  return Buffer.from([...bytes, rest]);
}

const integer = (field: number, value: number) => Buffer.concat([varint(field << 3), varint(value)]);
const bytesField = (field: number, value: Buffer) =>
  Buffer.concat([varint((field << 3) | 2), varint(value.length), value]);

function double(field: number, value: number): Buffer {
  const out = Buffer.alloc(8);
  out.writeDoubleLE(value);
  return Buffer.concat([varint((field << 3) | 1), out]);
}

function float(field: number, value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeFloatLE(value);
  return Buffer.concat([varint((field << 3) | 5), out]);
}

/** u64 length, its masked checksum, data, its masked checksum. */
function record(data: Buffer): Buffer {
  const out = Buffer.alloc(12 + data.length + 4);
  out.writeBigUInt64LE(BigInt(data.length));
  out.writeUInt32LE(maskedCrc32c(out.subarray(0, 8)), 8);
  data.copy(out, 12);
  out.writeUInt32LE(maskedCrc32c(data), 12 + data.length);
  return out;
}

// Field numbers of tensorflow.Event, Summary and SessionLog.
const event = { wallTime: 1, step: 2, fileVersion: 3, summary: 5, sessionLog: 7 };

function scalarsEvent(step: number, values: Record<string, number>, wallTime: number): Buffer {
  const summary = Object.entries(values).map(([tag, value]) =>
    bytesField(1, Buffer.concat([bytesField(1, Buffer.from(tag)), float(2, value)])),
  );
  return Buffer.concat([
    double(event.wallTime, wallTime),
    integer(event.step, step),
    bytesField(event.summary, Buffer.concat(summary)),
  ]);
}

const prefix = 'events.out.tfevents.';
const eventFiles = async (folder: string) => (await fsp.readdir(folder)).filter((name) => name.startsWith(prefix));

/** Gives the folder `to` the event files of `from`, in place of any it has. */
export async function copyEvents(from: string, to: string): Promise<void> {
  try {
    for (const name of await eventFiles(to)) await fsp.rm(join(to, name));
    for (const name of await eventFiles(from)) await fsp.copyFile(join(from, name), join(to, name));
  } catch (error) {
    throw ioError('copy event files to', to, error);
  }
}

let opened = 0;

/** Scalars for TensorBoard: `events.out.tfevents.<seconds>.<host>.<pid>.<n>` in the run folder. */
export class EventWriter {
  readonly path: string;
  readonly #handle: fsp.FileHandle;
  #last: Promise<unknown> = Promise.resolve();

  private constructor(path: string, handle: fsp.FileHandle) {
    this.path = path;
    this.#handle = handle;
  }

  /**
   * Starts a new event file. `resumeAt`: the step a run continues from; TensorBoard is told to forget what earlier files of
   * the folder say of later steps; -1: all that they say.
   */
  static async open(folder: string, options: { resumeAt?: number } = {}): Promise<EventWriter> {
    const now = Date.now() / 1000;
    const host = hostname().replace(/[^\w-]/g, '_') || 'localhost';
    const path = join(
      folder,
      `${prefix}${String(Math.floor(now)).padStart(10, '0')}.${host}.${process.pid}.${opened++}`,
    );
    try {
      const handle = await fsp.open(path, 'ax');
      const writer = new EventWriter(path, handle);
      await writer.#append(
        Buffer.concat([double(event.wallTime, now), bytesField(event.fileVersion, Buffer.from('brain.Event:2'))]),
      );
      if (options.resumeAt !== undefined) {
        const start = integer(1, 1);
        await writer.#append(
          Buffer.concat([
            double(event.wallTime, now),
            integer(event.step, options.resumeAt + 1),
            bytesField(event.sessionLog, start),
          ]),
        );
      }
      return writer;
    } catch (error) {
      throw ioError('write', path, error);
    }
  }

  /** Tag → value at a step; `wallTime` in seconds since 1970. Values are stored as float32. */
  scalars(step: number, values: Record<string, number>, wallTime = Date.now() / 1000): Promise<void> {
    if (Object.keys(values).length === 0) return Promise.resolve();
    return this.#append(scalarsEvent(step, values, wallTime));
  }

  #append(data: Buffer): Promise<void> {
    const done = this.#last.then(async () => {
      try {
        await this.#handle.appendFile(record(data));
      } catch (error) {
        throw ioError('write', this.path, error);
      }
    });
    this.#last = done.catch(() => {});
    return done;
  }

  async close(): Promise<void> {
    await this.#last;
    await this.#handle.close();
  }
}
