/** Runs a script once for each list of arguments, some at a time; a signal is passed on, and one failure stops the rest. */
import { spawn } from 'node:child_process';

export async function runJobs(script, lists, atOnce) {
  const left = [...lists];
  const running = new Set();
  for (const signal of ['SIGINT', 'SIGTERM'])
    process.once(signal, () => {
      for (const child of running) child.kill(signal);
    });
  const work = async () => {
    for (let args = left.shift(); args; args = left.shift()) {
      const child = spawn(process.execPath, [script, ...args], { stdio: 'inherit' });
      running.add(child);
      const code = await new Promise((done) => child.once('close', done));
      running.delete(child);
      if (code !== 0) {
        left.length = 0;
        throw new Error(`${args.join(' ')} stopped; the same command goes on with it`);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.max(1, atOnce) }, work));
}

/** Options as they were given. */
export const asArguments = (values) =>
  Object.entries(values).flatMap(([key, value]) => (typeof value === 'string' ? [`--${key}`, value] : []));
