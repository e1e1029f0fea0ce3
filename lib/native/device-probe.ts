// A process that asks a device library what there is, and with a number opens that device. Prints one JSON object.
import { addon } from './loader.js';

const [library, ordinal] = process.argv.slice(2);
try {
  const description: unknown = JSON.parse(addon().describeDevices(library));
  if (ordinal) addon().tryDevice(library, Number(ordinal));
  process.stdout.write(JSON.stringify({ description }));
} catch (error) {
  const { code = 'UNSUPPORTED', message } = error as Error & { code?: string };
  process.stdout.write(JSON.stringify({ code, message }));
}
