-- census: how the ledger stands.
-- KEYS  due, counts, consumers, birth
-- ARGV  lease_ms: a consumer that was seen within twice this time lives
-- Returns {counts by status as fields and values, ms by which the oldest due job is overdue,
--          living consumers, ms since one was seen (-1: never), when the ledger began, now}

local now = now_ms()
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local overdue = 0
if first[2] then
  overdue = math.max(0, now - first[2])
end
local living = redis.call('ZCOUNT', KEYS[3], now - 2 * ARGV[1], '+inf')
local last = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')
local seen = -1
if last[2] then
  seen = now - last[2]
end
local birth = redis.call('GET', KEYS[4])
if not birth then
  birth = now
  redis.call('SET', KEYS[4], now)
end
return {redis.call('HGETALL', KEYS[2]), overdue, living, seen, tonumber(birth), now}
