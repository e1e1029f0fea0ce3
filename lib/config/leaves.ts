import { z } from 'zod';

// Every leaf's `error` is what was expected; lib/config/problems.ts puts the place and what was found in front of it.
export const wholeFrom = (min: number) => {
  const error = `a whole number of at least ${min}`;
  return z.int({ error }).min(min, { error });
};
export const flag = () => z.boolean({ error: 'true or false' });
export const text = (error: string) => z.string({ error }).min(1, { error });
export const choice = <const T extends readonly string[]>(values: T) =>
  z.enum(values, { error: values.length === 1 ? values[0] : `one of ${values.join(', ')}` });
export const number = () => z.number({ error: 'a number' });
export const positive = () => z.number({ error: 'a number above 0' }).gt(0, { error: 'a number above 0' });
export const notNegative = () =>
  z.number({ error: 'a number of at least 0' }).min(0, { error: 'a number of at least 0' });
/** In [0, 1). */
export const share = () => {
  const error = 'a number from 0 to below 1';
  return z.number({ error }).min(0, { error }).lt(1, { error });
};
/** A share strictly between 0 and 1. */
export const part = () => {
  const error = 'a number between 0 and 1';
  return z.number({ error }).gt(0, { error }).lt(1, { error });
};
/**
 * Its type names the shape as it was written: only so do the comments on keys reach the declarations that editors read. A shape
 * that another file uses is an interface, which declarations name; any other type they repeat without its comments.
 */
export const section = <T extends z.core.$ZodLooseShape>(shape: T): z.ZodObject<T, z.core.$strict> =>
  z.strictObject(shape, { error: 'a mapping' }) as unknown as z.ZodObject<T, z.core.$strict>;
export const paths = () =>
  z.union([text('a path'), z.array(text('a path')).min(1, { error: 'a path or a list of paths' })], {
    error: 'a path or a list of paths',
  });
export const patternOf = (value: z.ZodNumber | z.ZodInt) =>
  z.record(z.string(), value, { error: 'a mapping from module names to numbers' });
