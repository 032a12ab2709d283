-- renew: notes that a consumer lives, and extends the leases of its jobs, all in one call.
-- KEYS  due, consumers, job...
-- ARGV  the consumer's name, lease_ms, then id and fence of each job
-- Returns the ids whose claim is lost

local lost = {}
local now = now_ms()
local lease_end = now + ARGV[2]
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - PRESENCE_MS)
for i = 3, #KEYS do
  local id, fence = ARGV[2 * i - 3], ARGV[2 * i - 2]
  local job = redis.call('HMGET', KEYS[i], 'status', 'fence')
  if job[1] == 'sending' and job[2] == fence then
    redis.call('ZADD', KEYS[1], lease_end, id)
  else
    lost[#lost + 1] = id
  end
end
return lost
