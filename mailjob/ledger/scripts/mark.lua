-- mark: the holder of the claim is about to send the content. From here on a crash is ambiguous.
-- KEYS  job, due
-- ARGV  id, fence, lease_ms
-- Returns 1, or 0 when the claim is lost: then nothing of the content may be sent

local job = redis.call('HMGET', KEYS[1], 'status', 'fence')
if job[1] ~= 'sending' or job[2] ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'phase', 'data')
redis.call('ZADD', KEYS[2], now_ms() + ARGV[3], ARGV[1])
return 1
