-- read: one job as it is now.
-- KEYS  job, due
-- ARGV  id
-- Returns {fields and values of the hash, score in due or false}

return {redis.call('HGETALL', KEYS[1]), redis.call('ZSCORE', KEYS[2], ARGV[1])}
