-- renew: extends the leases of one consumer's jobs, all in one call.
-- KEYS  due, job...
-- ARGV  lease_ms, then id and fence of each job
-- Returns the ids whose claim is lost

local lost = {}
local lease_end = now_ms() + ARGV[1]
for i = 2, #KEYS do
  local id, fence = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local job = redis.call('HMGET', KEYS[i], 'status', 'fence')
  if job[1] == 'sending' and job[2] == fence then
    redis.call('ZADD', KEYS[1], lease_end, id)
  else
    lost[#lost + 1] = id
  end
end
return lost
