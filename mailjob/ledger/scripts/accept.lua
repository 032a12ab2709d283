-- accept: writes a new job and makes it due after the grace its doorbell has to be heard.
-- KEYS  job, due, counts[, idempotency]
-- ARGV  id, body, recipients, grace_ms, most unfinished jobs[, fingerprint, idempotency_ttl_ms]
-- Returns {'accepted', id} | {'replayed', id of the first job} | {'conflict'} | {'full'}

if KEYS[4] then
  local stored = redis.call('GET', KEYS[4])
  if stored then
    local fingerprint, id = string.match(stored, '^(%S+) (%S+)$')
    if fingerprint == ARGV[6] then
      return {'replayed', id}
    end
    return {'conflict'}
  end
end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[5]) then
  return {'full'}
end
if KEYS[4] then
  redis.call('SET', KEYS[4], ARGV[6] .. ' ' .. ARGV[1], 'PX', ARGV[7])
end
local now = now_ms()
redis.call('HSET', KEYS[1], 'status', 'queued', 'created', now, 'updated', now,
  'body', ARGV[2], 'recipients', ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[1])
redis.call('HINCRBY', KEYS[3], 'queued', 1)
return {'accepted', ARGV[1]}
