-- complete: ends an attempt. Holds as long as nobody claimed the job after the caller did.
-- KEYS  job, due, counts
-- ARGV  id, fence, next status, recipients ('' leaves them as they are), delay_ms until it is due ('' when finished),
--       retention_ms, inside of the timeline entry
-- Returns 1, or 0 when the claim is lost

local job = redis.call('HMGET', KEYS[1], 'status', 'fence', 'events')
local status, target = job[1], ARGV[3]
if not status or job[2] ~= ARGV[2] then
  return 0
end
if status == target then
  -- The same call again, whose first reply was lost.
  return 1
end
if status == 'queued' then
  -- The lease ran out and the job was queued again, but nobody took it: the caller still knows best.
  move(KEYS[3], 'queued', 'sending')
  status = 'sending'
elseif status ~= 'sending' and status ~= 'uncertain' then
  return 0
end
local now = now_ms()
move(KEYS[3], status, target)
redis.call('HSET', KEYS[1], 'status', target, 'updated', now, 'phase', '',
  'events', with_event(job[3], now, ARGV[7]))
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'recipients', ARGV[4])
end
if ARGV[5] ~= '' then
  redis.call('ZADD', KEYS[2], now + ARGV[5], ARGV[1])
  redis.call('PERSIST', KEYS[1])
  return 1
end
redis.call('ZREM', KEYS[2], ARGV[1])
if target ~= 'uncertain' then
  redis.call('HDEL', KEYS[1], 'body')
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return 1
